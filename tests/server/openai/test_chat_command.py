"""`tierline chat` against a real front door."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierline.cli.main import main
from tierline.server.openai import FrontOptions
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Live
from .test_images import GOOD

KEY = "a-key-for-the-chat"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def live(generator: InstantGenerator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    generator.answer = list("Gr\x1b[31müße".encode())
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("TIERLINE_API_KEY", KEY)
    with Live(generator, ByteText(), FrontOptions(api_keys=(KEY,))) as server:
        yield server


def asked(generator: InstantGenerator) -> list[str]:
    return [bytes(token for token in request.prompt if token < 256).decode() for request, _ in generator.requests]


def test_one_question(live: Live, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(GOOD)
    words = [
        "chat",
        live.url,
        "-m",
        "what is it?",
        "--image",
        str(picture),
        "--system",
        "be short",
        "--max-tokens",
        "50",
    ]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("Gr[31müße\n", "")
    assert asked(live.generator) == ["system: be short\nuser: what is it?\nassistant: "]
    ((request, pictures),) = live.generator.requests
    assert (request.sampling.max_tokens, len(pictures)) == (50, 1)


def test_a_question_from_a_pipe(
    live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", live.url]) == 0
    assert capsys.readouterr().out == "Gr[31müße\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main(["chat", live.url]) == 2


def test_a_conversation(
    live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    live.generator.answer = list(b"yes")
    picture = tmp_path / "a cat.png"
    picture.write_bytes(GOOD)
    lines = iter(
        [
            "one",
            f"/image '{picture}'",
            "two",
            "/image",
            "/image nowhere.png",
            "/image 'x",
            "/dance",
            "",
            "/clear",
            "three",
        ]
    )

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    assert main(["chat", live.url]) == 0
    out, err = capsys.readouterr()
    assert asked(live.generator) == [
        "user: one\nassistant: ",
        "user: one\nassistant: yes\nuser: two\nassistant: ",
        "user: three\nassistant: ",
    ]
    assert [len(request.images) for request, _ in live.generator.requests] == [0, 1, 0]
    assert out.count("yes\n") == 3
    assert err.count("first token after") == 3
    for said in (
        "/image needs a file",
        "'nowhere.png' cannot be read",
        "a quote is not closed",
        "'/dance' is no command",
    ):
        assert said in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "gpt-5"], "serves instant"),
        (["--api-key", "a-wrong-key"], "refused (401): Incorrect API key"),
        (["--max-tokens", "0"], "refused (400): max_tokens 0"),
        (["--image", "nowhere.png"], "'nowhere.png' cannot be read"),
    ],
)
def test_errors_are_one_sentence(live: Live, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["chat", live.url, "-m", "hello", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tierline: ") and err.count("\n") == 1
    assert said in err


def test_an_answer_that_breaks_off(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    live.generator.lose_after = 1
    assert main(["chat", live.url, "-m", "hello"]) == 2
    out, err = capsys.readouterr()
    assert out == "G\n"
    assert "The instance was lost" in err


def test_where_no_server_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "http://127.0.0.1:1", "-m", "hello"]) == 2
    assert "`tierline serve` starts one" in capsys.readouterr().err
    assert main(["chat", "127.0.0.1:8000", "-m", "hello"]) == 2
    assert "begins with http://" in capsys.readouterr().err
