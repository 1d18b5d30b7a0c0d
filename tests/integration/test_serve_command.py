"""`tierline serve` from the outside: real HTTP, real instance processes, kills in the middle of streams, and its end."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("zmq")
Image = pytest.importorskip("PIL.Image")

from tierline.testing.checkpoints import build  # noqa: E402
from tierline.testing.daemon import wait_until  # noqa: E402
from tierline.testing.serving_processes import ServeProcess, children_of, is_alive, serve_process  # noqa: E402

ROLES = "EP,D,D"
OPTIONS = ("--roles", ROLES, "--dtype", "fp32", "--kv-memory", "8M", "--share", "--served-name", "m")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build("llava-clip", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def server(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    tmp = tmp_path_factory.mktemp("serve")
    running = serve_process(folder, tmp, *OPTIONS)
    try:
        running.wait_ready(3)
        yield running
    finally:
        children, mine = children_of(running.pid), names(tmp)
        code = running.stop()
    assert code == 0, running.stderr.read_text()
    assert nothing_left(tmp, children, mine)
    assert "Traceback" not in running.stderr.read_text()


def nothing_left(tmp: Path, children: list[int], mine: list[str]) -> bool:
    """`mine`: names of the server's folders while it ran."""
    assert len(mine) == 1
    memory = [name for name in mine if Path(f"/dev/shm/{name}-shm").exists()]
    return not [pid for pid in children if is_alive(pid)] and not names(tmp) and not memory


def names(tmp: Path) -> list[str]:
    return [path.name for path in tmp.glob("tierline-serve-*")]


def picture(seed: int) -> dict[str, Any]:
    data = io.BytesIO()
    rgb = random.Random(seed).randbytes(40 * 30 * 3)
    Image.frombytes("RGB", (40, 30), rgb).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def body(number: int, tokens: int = 60, **more: Any) -> dict[str, Any]:
    """Question `number`, with 0 to 3 images."""
    text = {"type": "text", "text": f"question {number} " + "and so on " * (number % 5)}
    content = [*(picture(number * 10 + place) for place in range(number % 4)), text]
    return {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


def whole(server: ServeProcess, number: int, tokens: int = 60) -> str:
    answer = httpx.post(server.url + CHAT, json=body(number, tokens), timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def streamed(server: ServeProcess, number: int, tokens: int = 60) -> str:
    found: list[str] = []
    with httpx.stream("POST", server.url + CHAT, json=body(number, tokens, stream=True), timeout=120) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]", lines[-1]
    for line in lines[:-1]:
        found += [choice["delta"].get("content") or "" for choice in json.loads(line)["choices"]]
    return "".join(found)


def test_a_stream_says_what_a_whole_answer_says_and_counters_move(server: ServeProcess) -> None:
    before = server.metrics()
    texts = [whole(server, number) for number in range(4)]
    assert [streamed(server, number) for number in range(4)] == texts
    assert len(set(texts)) == 4
    wait_until(server.is_idle, "all KV blocks are free")
    after = server.metrics()
    for name, least in (
        ("tierline:moves_total", 8),
        ("vllm:prefix_cache_hits_total", 16),
        ("vllm:mm_cache_queries_total", 12),
        ("vllm:mm_cache_hits_total", 6),
    ):
        assert after[name] - before[name] >= least, name
    gained = {name: after[name] - value for name, value in before.items() if name in after}
    assert sum(value for name, value in gained.items() if name.startswith("tierline:encoded_images_total")) == 6
    assert sum(value for name, value in gained.items() if name.startswith("vllm:generation_tokens_total")) == 8 * 60


def test_streams_go_on_when_instances_are_killed(server: ServeProcess) -> None:
    numbers = range(10, 34)
    wanted = {number: whole(server, number) for number in numbers}
    lost = server.metrics()["tierline:instances_lost_total"]
    with ThreadPoolExecutor(8) as pool:
        asked = {number: pool.submit(streamed, server, number) for number in numbers}
        for slot in ("i1", "i0"):
            wait_until(lambda: any("decoding" in each for each in server.status()["instances"]), "it works")
            pids = {each["name"].partition("~")[0]: each["pid"] for each in server.status()["instances"]}
            if slot in pids:
                os.kill(pids[slot], signal.SIGKILL)
            time.sleep(0.2)
        assert {number: one.result() for number, one in asked.items()} == wanted
    server.wait_ready(3)
    assert server.metrics()["tierline:instances_lost_total"] >= lost + 1
    assert httpx.get(f"{server.url}/health").status_code == 200
    wait_until(server.is_idle, "all KV blocks are free")


BAD: tuple[dict[str, Any], ...] = (
    {"messages": []},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]},
    {"max_tokens": 10**30},
    {"seed": 10**40, "temperature": 1e300},
    {"temperature": -1},
    {"logit_bias": {"99999999": 1}},
    {"stop_token_ids": [10**20]},
    {"priority": 10**25},
    {"messages": [{"role": "user", "content": "x" * 4000}]},
)  # fmt: skip
BAD_PROMPTS: tuple[Any, ...] = ([[10**9]], [[-1]], [10**30], "", [])


def test_bad_input_harms_nobody_else(server: ServeProcess) -> None:
    numbers = range(40, 46)
    wanted = {number: whole(server, number) for number in numbers}
    pids = {each["pid"] for each in server.status()["instances"]}
    with ThreadPoolExecutor(8) as pool:
        asked = {number: pool.submit(streamed, server, number) for number in numbers}
        for bad in BAD:
            answer = httpx.post(server.url + CHAT, json=body(0, 4) | bad, timeout=120)
            assert answer.status_code < 500, (bad, answer.text)
        for prompt in BAD_PROMPTS:
            order = {"model": "m", "prompt": prompt, "max_tokens": 4}
            answer = httpx.post(f"{server.url}/v1/completions", json=order, timeout=120)
            assert answer.status_code < 500, (prompt, answer.text)
        placeholder = {"model": "m", "prompt": "<image><image>", "max_tokens": 4}
        assert httpx.post(f"{server.url}/v1/completions", json=placeholder, timeout=120).status_code < 500
        assert {number: one.result() for number, one in asked.items()} == wanted
    assert {each["pid"] for each in server.status()["instances"]} == pids


def test_clients_that_leave_free_their_blocks(server: ServeProcess) -> None:
    def leave(number: int) -> None:
        order = body(number, 800, stream=True)
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", server.url + CHAT, json=order, timeout=60) as answer,
        ):
            for place, _ in enumerate(answer.iter_lines()):
                if place > number % 7:
                    return

    def never_read(number: int) -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(server.url + CHAT, json=body(number, 800), timeout=0.01 + 0.05 * (number % 4))

    pids = {each["pid"] for each in server.status()["instances"]}
    threads = [
        threading.Thread(target=deed, args=(number,)) for number in range(50, 70) for deed in (leave, never_read)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(server.is_idle, "all KV blocks are free")
    assert server.status()["live"] == 0
    assert {each["pid"] for each in server.status()["instances"]} == pids, "it costs no instance"
    assert whole(server, 1) == streamed(server, 1)


def test_a_signal_lets_answers_end(folder: str, tmp_path: Path) -> None:
    server = serve_process(folder, tmp_path, *OPTIONS[2:], "--roles", "EPD")
    server.wait_ready(1)
    children, mine = children_of(server.pid), names(tmp_path)
    assert len(children) == 2
    wanted = whole(server, 2, 300)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(streamed, server, 2, 300) for _ in range(4)]
        wait_until(lambda: server.status()["live"] == 4, "they are being answered")
        server.process.terminate()
        assert [one.result() for one in asked] == [wanted] * 4
    assert server.wait() == 0
    assert nothing_left(tmp_path, children, mine)


def test_a_killed_server_takes_its_processes_along(folder: str, tmp_path: Path) -> None:
    server = serve_process(folder, tmp_path, *OPTIONS)
    server.wait_ready(3)
    children = children_of(server.pid)
    assert len(children) == 4
    server.process.kill()
    server.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in children), "its processes have ended")
    left = names(tmp_path)
    assert len(left) == 1, "nobody was left to remove it"
    next_one = serve_process(folder, tmp_path, *OPTIONS[2:], "--roles", "EPD")
    assert left[0] not in names(tmp_path), "the next server removes it"
    assert not Path(f"/dev/shm/{left[0]}-shm").exists()
    assert len(names(tmp_path)) == 1
    assert next_one.stop() == 0
    assert names(tmp_path) == []


def test_weights_that_cannot_be_loaded_are_one_clear_sentence(folder: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(folder).iterdir():
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    server = serve_process(str(broken), tmp_path, *OPTIONS)
    assert server.wait() == 2
    said = [line for line in server.stderr.read_text().splitlines() if line]
    assert len(said) == 1, said
    assert said[0].startswith("tierline: an instance cannot be started: model ")
    assert "cannot be loaded" in said[0]
    assert names(tmp_path) == []
