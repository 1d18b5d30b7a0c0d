"""The demo's serving part: tiny-vlm over three instances, one of each stage, asked about pictures made here.

Starts `tierline serve tiny-vlm --roles E,P,D`, asks about pictures that were never trained on, streams one answer, asks
about a picture a second time, and shows what the counters say.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from tierline.workloads.scene_questions import answerable, ask
from tierline.workloads.scenes import HELD_OUT_SEEDS, draw, free_scene, grid_scene

START_S = 180.0
STOP_S = 30.0
ASKED = 4
COUNTERS = (
    ("vllm:mm_cache_queries_total", "images looked up"),
    ("vllm:mm_cache_hits_total", "of them already encoded"),
    ("vllm:prefix_cache_queries_total", "prompt positions"),
    ("vllm:prefix_cache_hits_total", "of them with cached KV"),
    ("tierline:moves_total", "requests moved from prefill to decode"),
)


@dataclass(frozen=True)
class Asked:
    """A question about a picture, and the right answer."""

    picture: Image.Image
    question: str
    answer: str


@contextlib.contextmanager
def server(roles: str) -> Iterator[str]:
    """A server of its own on a free port; its address once all instances are ready."""
    command = [sys.executable, "-m", "tierline.cli.main", "serve", "tiny-vlm", "--port", "0", "--roles", roles]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ready"):
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        if not ready.wait(START_S) or process.poll() is not None:
            raise SystemExit("demo: the server did not start:\n" + "".join(lines))
        yield next(line.split()[-1] for line in lines if line.startswith("Listening"))
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def questions() -> list[Asked]:
    """Some about scenes on a grid and some about shapes drawn freely; all from seeds that were never trained on."""
    rng = random.Random(7)
    asked = []
    for place, kind in enumerate(("caption", "colour", "count", "shape")[:ASKED]):
        for seed in HELD_OUT_SEEDS[1000 * place :]:
            scene = free_scene(seed) if place % 2 else grid_scene(seed)
            if kind in answerable(scene):
                question = ask(scene, rng, kind)
                asked.append(Asked(draw(scene), question.text, question.answer))
                break
    return asked


def message(asked: Asked) -> list[dict[str, Any]]:
    data = io.BytesIO()
    asked.picture.save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": asked.question}]
    return [{"role": "user", "content": parts}]


def streamed(client: httpx.Client, asked: Asked, console: Console) -> str:
    """Print an answer as it comes."""
    body = {"messages": message(asked), "stream": True, "temperature": 0, "max_tokens": 60}
    console.print(f"[bold]Q[/] {asked.question}\n[bold]A[/] ", end="")
    text = ""
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    piece = choice["delta"].get("content") or ""
                    text += piece
                    console.print(piece, end="", markup=False)
    console.print(f"   [dim](right answer: {asked.answer})[/]")
    return text


def plain(client: httpx.Client, asked: Asked) -> tuple[str, float]:
    began = time.perf_counter()
    response = client.post(
        "/v1/chat/completions", json={"messages": message(asked), "temperature": 0, "max_tokens": 60}
    )
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"], time.perf_counter() - began


def counters(client: httpx.Client) -> dict[str, float]:
    """Every series of /metrics, summed over its labels."""
    totals: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def run(console: Console, pictures: Path) -> None:
    """The whole part; the pictures asked about go to `pictures`."""
    console.print("\n[bold]Serving[/]: tiny-vlm over three instances, one each for encode, prefill and decode")
    asked = questions()
    with console.status("Starting three instances …"), contextlib.ExitStack() as stack:
        url = stack.enter_context(server("E,P,D"))
        running = stack.pop_all()
    with running, httpx.Client(base_url=url, timeout=120) as client:
        streamed(client, asked[0], console)
        table = Table("question", "answer", "right", "ms", title="Pictures that were never trained on")
        for each in asked:
            answer, seconds = plain(client, each)
            table.add_row(
                each.question, answer, "yes" if answer == each.answer else each.answer, f"{seconds * 1e3:.0f}"
            )
        console.print(table)
        totals = counters(client)
        for name, words in COUNTERS:
            console.print(f"{totals.get(name, 0.0):6.0f}  {words}  [dim]{name}[/]")
        for instance in client.get("/tierline/status").json()["instances"]:
            console.print(
                f"[dim]{instance['name']} ({instance['roles']}): {instance['steps']} iterations, "
                f"{instance['encoded_images']} images encoded, {instance['free_blocks']} of "
                f"{instance['total_blocks']} KV blocks free[/]"
            )
    sheet = Image.new("RGB", (len(asked) * 120, 120), "grey")
    for place, each in enumerate(asked):
        sheet.paste(ImageOps.expand(each.picture, 4, "grey"), (place * 120, 0))
    pictures.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * 2, sheet.height * 2)).save(pictures)
    print(f"Pictures: {pictures}")


if __name__ == "__main__":
    run(Console(highlight=False), Path("out") / "demo_pictures.png")
