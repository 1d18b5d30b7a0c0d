"""`tierline chat`: talk with a model behind any OpenAI-compatible server, pictures included."""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import shlex
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli.serving_address import URL, ApiKey, key_headers, root_of
from tierline.core.errors import InvalidInput, RequestLost

if TYPE_CHECKING:
    import httpx

HELP = "/image FILE adds a picture to the next question, /clear forgets the conversation, /quit ends (as does Ctrl-D)."
CONNECT_S = 10.0
ANSWER_S = 600.0
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def register(app: typer.Typer) -> None:
    app.command("chat", rich_help_panel="Serving")(chat)


def chat(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="Where the server is.", show_default=True)] = URL,
    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="TEXT", help="Ask this, print the answer and leave.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture of the first question.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="[default: the server's first]")] = "",
    system: Annotated[str, typer.Option(metavar="TEXT", help="What the model is told before everything.")] = "",
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Of each answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="0 = the likeliest token each time.")] = None,
    api_key: ApiKey = "",
) -> None:
    """Chat with a served model; answers stream. Within the chat: /image FILE, /clear, /quit.

    Example: `tierline chat -m "What is in this picture?" --image cat.png`
    """
    import httpx

    root, headers = root_of(url), key_headers(api_key)
    timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    with httpx.Client(base_url=f"{root}/v1", headers=headers, timeout=timeout) as client:
        talk = Talk(client, root, {name: value for name, value in settings.items() if value is not None})
        talk.pictures = [picture(path) for path in image or ()]
        talk.begin(model, system)
        if message is None and not sys.stdin.isatty():
            message = sys.stdin.read().strip()
        if message is not None:
            if not message:
                raise InvalidInput("There is no question: -m and the standard input are empty.")
            _show(talk, message, sys.stderr.isatty())
            return
        _converse(talk)


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one answer. `tokens` 0 = the server did not say."""

    first_s: float
    whole_s: float
    tokens: int

    def __str__(self) -> str:
        rate = (self.tokens - 1) / max(1e-9, self.whole_s - self.first_s) if self.tokens > 1 else 0.0
        speed = f", {self.tokens} tokens" + (f" at {rate:.1f} tokens/s" if rate else "") if self.tokens else ""
        return f"first token after {self.first_s:.2f} s{speed}"


@dataclass(slots=True)
class Talk:
    """A conversation: what was said, and the pictures that go with the next question."""

    client: httpx.Client
    root: str
    settings: dict[str, Any]
    model: str = ""
    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    timing: Timing | None = None

    def begin(self, model: str, system: str) -> None:
        """Ask the server for its model unless one was named. Raises `TierlineError`."""
        with self._told():
            answer = self.client.get("/models")
        self._check(answer.status_code, answer.content)
        names = [str(card["id"]) for card in _json(answer.content).get("data", [])]
        if model and names and model not in names:
            raise InvalidInput(f"model '{model}': {self.root} serves {', '.join(names)}.")
        if not model and not names:
            raise InvalidInput(f"{self.root} names no model: give one with --model.")
        self.model, self.system = model or names[0], system
        self.clear()

    def clear(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer's text as it comes. What came stays in the conversation, also when the reader stops; a question that
        was refused does not. Raises `TierlineError`."""
        content: Any = [*self.pictures, {"type": "text", "text": question}] if self.pictures else question
        asked = {"role": "user", "content": content}
        body = {
            "model": self.model,
            "messages": [*self.messages, asked],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.settings,
        }
        self.timing = None
        begun = time.monotonic()
        first_s, tokens, said = 0.0, 0, ""
        try:
            with self._told(), self.client.stream("POST", "/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    self._check(answer.status_code, answer.read())
                for event in _events(answer):
                    if event.get("error"):
                        raise RequestLost(str(event["error"].get("message", "The answer broke off.")))
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    for choice in event.get("choices", ()):
                        first_s = first_s or time.monotonic() - begun
                        text = (choice.get("delta", {}).get("content") or "").translate(_CONTROLS)
                        said += text
                        yield text
            self.timing = Timing(first_s, time.monotonic() - begun, tokens)
        finally:
            if first_s:
                self.messages += [asked, {"role": "assistant", "content": said}]
                self.pictures = []

    def _check(self, status: int, content: bytes) -> None:
        if status == 200:
            return
        error = _json(content).get("error")
        said = error.get("message") if isinstance(error, dict) else error
        raise InvalidInput(f"{self.root} refused ({status}): {said or content[:200].decode(errors='replace')}")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.ConnectError as error:
            raise RequestLost(f"No server answers at {self.root}: `tierline serve` starts one.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestLost(f"{self.root} did not answer as it should: {error or type(error).__name__}.") from error


def picture(path: Path) -> dict[str, Any]:
    """A file as a part of a message. Raises `InvalidInput`."""
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise InvalidInput(f"The picture '{path}' cannot be read: {error.strerror}.") from error
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def _converse(talk: Talk) -> None:
    """Questions from the terminal until it ends."""
    from rich.console import Console

    from tierline.core.errors import TierlineError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives `input` its history and keys)
    console = Console(highlight=False)
    console.print(f"[bold]{talk.model}[/bold] at {talk.root}. {HELP}", style="dim")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        try:
            if line == "/clear":
                talk.clear()
                talk.pictures = []
                console.print("Forgotten.", style="dim")
            elif line.split(" ", 1)[0] == "/image":
                for name in _names(line):
                    talk.pictures.append(picture(Path(name)))
                console.print(f"{len(talk.pictures)} to go with the next question.", style="dim")
            elif line.startswith("/"):
                console.print(f"'{line}' is no command. {HELP}", style="dim", markup=False)
            elif line:
                _show(talk, line, True)
        except TierlineError as error:
            console.print(str(error), style="red", markup=False)


def _names(line: str) -> list[str]:
    try:
        names = shlex.split(line)[1:]
    except ValueError as error:
        raise InvalidInput(f"'{line}': a quote is not closed.") from error
    if not names:
        raise InvalidInput("/image needs a file, as in `/image cat.png`.")
    return names


def _show(talk: Talk, question: str, with_timing: bool) -> None:
    """Print an answer as it comes. Ctrl-C within a conversation ends the answer, which cancels it at the server."""
    from rich.console import Console

    answer = talk.ask(question)
    try:
        for text in answer:
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    finally:
        answer.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
    if with_timing and talk.timing is not None:
        Console(stderr=True, highlight=False).print(str(talk.timing), style="dim")


def _events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield _json(line[6:].encode())


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
