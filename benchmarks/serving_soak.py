"""Ten minutes of `tierline serve tiny-vlm` under clients of every kind, and what is left afterwards: nothing may leak.

Text, images, streams, bad input and clients that disconnect, at a steady concurrency. After a warm-up, every process is
measured again and again: memory of its own, file descriptors, threads. At the end, with nobody asking any more, all KV blocks
are free, no transfer lies in shared memory, and no process has more descriptors than after the warm-up but for a few.
`python benchmarks/serving_soak.py --seconds 600 --json docs/results/serving_soak.json`
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tierline.testing.serving_processes import (
    ServeProcess,
    children_of,
    descriptors,
    rss_bytes,
    serve_process,
)

MODEL = "tiny-vlm"
WARM_SHARE = 0.2
SAMPLE_S = 2.0
KINDS = ("text", "image", "image again", "stream", "stream with image", "left", "left stream", "bad")
BAD: tuple[dict[str, Any], ...] = (
    {"messages": []},
    {"messages": [{"role": "user", "content": 7}]},
    {"messages": [{"role": "user", "content": "hi"}], "temperature": -1},
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10**9},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
)


@dataclass(slots=True)
class Sample:
    """One process at one moment."""

    second: float
    rss: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Tally:
    done: collections.Counter[str] = field(default_factory=collections.Counter)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)


def picture(rng: random.Random) -> str:
    image = Image.new(
        "RGB", (rng.choice((64, 96, 112)), rng.choice((64, 96, 112))), tuple(rng.choices(range(256), k=3))
    )
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def body_of(kind: str, rng: random.Random, known: list[str]) -> dict[str, Any]:
    if kind == "bad":
        return {"model": MODEL, **rng.choice(BAD)}
    words = " ".join(
        rng.choices(("red", "circle", "how", "many", "shapes", "are", "there", "?"), k=rng.randrange(1, 60))
    )
    content: Any = words
    if "image" in kind or (kind.startswith("left") and rng.random() < 0.5):
        urls = [rng.choice(known) if "again" in kind else picture(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": words}]
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": rng.randrange(1, 40),
        "temperature": rng.choice((0, 1)),
        "ignore_eos": True,
        "stream": "stream" in kind,
    }


async def client(url: str, seed: int, until: float, tally: Tally, known: list[str]) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        kind = rng.choice(KINDS)
        body = body_of(kind, rng, known)
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            try:
                if kind.startswith("left"):
                    async with asyncio.timeout(rng.random() * 0.3):
                        await ask(http, body, kind, tally)
                else:
                    await ask(http, body, kind, tally)
            except TimeoutError:
                tally.done["disconnected"] += 1
            except httpx.HTTPError as error:
                tally.faults.append(f"{kind}: {type(error).__name__}: {error}")


async def ask(http: httpx.AsyncClient, body: dict[str, Any], kind: str, tally: Tally) -> None:
    path = "/v1/chat/completions"
    if body.get("stream"):
        async with http.stream("POST", path, json=body) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        good = answer.status_code == 200 and lines[-1] == "data: [DONE]"
    else:
        answer = await http.post(path, json=body)
        good = answer.status_code == (200 if kind != "bad" else answer.status_code) and answer.status_code < 500
    tally.statuses[answer.status_code] += 1
    tally.done[kind] += 1
    if not good:
        tally.faults.append(f"{kind}: {answer.status_code}")


def sample(pids: dict[str, int], second: float, samples: dict[str, list[Sample]], faults: list[str]) -> None:
    for name, pid in list(pids.items()):
        try:
            threads = len(os.listdir(f"/proc/{pid}/task"))
            samples[name].append(Sample(second, rss_bytes(pid), descriptors(pid), threads))
        except FileNotFoundError:
            faults.append(f"{name} was gone after {second:.0f} s")
            del pids[name]


def slope_bytes_a_minute(samples: list[Sample]) -> float:
    """Theil-Sen: the median of the slopes of all pairs, which single peaks do not move."""
    pairs = [
        (b.rss - a.rss) / (b.second - a.second) * 60
        for place, a in enumerate(samples)
        for b in samples[place + 1 :: max(1, len(samples) // 50)]
    ]
    return statistics.median(pairs) if pairs else 0.0


async def soak(server: ServeProcess, seconds: float, clients: int) -> dict[str, Any]:
    pids = {"server": server.pid}
    pids |= {each["name"]: each["pid"] for each in server.status()["instances"]}
    rest = set(children_of(server.pid)) - set(pids.values())
    pids |= {f"fork server {pid}": pid for pid in rest}
    known = [picture(random.Random(number)) for number in range(8)]
    tally, samples = Tally(), {name: [] for name in pids}
    began = time.monotonic()
    tasks = [
        asyncio.create_task(client(server.url, number, began + seconds, tally, known)) for number in range(clients)
    ]
    while time.monotonic() - began < seconds:
        await asyncio.sleep(min(SAMPLE_S, seconds / 20))
        sample(pids, time.monotonic() - began, samples, tally.faults)
    await asyncio.gather(*tasks)
    for _ in range(200):
        if server.is_idle():
            break
        await asyncio.sleep(0.05)
    return {"tally": tally, "samples": samples, "pids": pids, "seconds": time.monotonic() - began}


def judged(server: ServeProcess, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    tally: Tally = found["tally"]
    status = server.status()
    faults = list(tally.faults)
    if status["live"] or any(each["free_blocks"] != each["total_blocks"] for each in status["instances"]):
        faults.append(f"KV blocks are held with nobody asking: {status}")
    left = [str(path) for path in Path("/dev/shm").glob("tierline-serve-*/transfers/*")]
    if left:
        faults.append(f"transfers are left: {left}")
    processes = {}
    for name in found["pids"]:
        rows = found["samples"][name]
        warm = [each for each in rows if each.second >= WARM_SHARE * seconds]
        pid = found["pids"][name]
        first, last = warm[: max(1, len(warm) // 5)], warm[-max(1, len(warm) // 5) :]
        processes[name] = {
            "rss_mib_warm": round(statistics.median(each.rss for each in first) / 2**20, 2),
            "rss_mib_end": round(statistics.median(each.rss for each in last) / 2**20, 2),
            "slope_kib_a_minute": round(slope_bytes_a_minute(warm) / 1024, 1),
            "descriptors_warm": min(each.descriptors for each in warm),
            "descriptors_end": descriptors(pid),
            "threads_warm": min(each.threads for each in warm),
            "threads_end": len(os.listdir(f"/proc/{pid}/task")),
        }
        if processes[name]["descriptors_end"] > processes[name]["descriptors_warm"] + 8:
            faults.append(f"{name} has {processes[name]['descriptors_end']} descriptors")
    return {
        "seconds": round(found["seconds"], 1),
        "requests": sum(tally.done.values()),
        "by_kind": dict(sorted(tally.done.items())),
        "by_status": {str(key): count for key, count in sorted(tally.statuses.items())},
        "processes": processes,
        "counts": status["counts"],
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--roles", default="EP,D")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        server = serve_process(MODEL, Path(tmp), "--roles", given.roles, "--kv-memory", "64M", "--image-cache", "1M")
        try:
            server.wait_ready(len(given.roles.split(",")))
            found = judged(server, asyncio.run(soak(server, given.seconds, given.clients)), given.seconds)
        finally:
            code = server.stop()
        if code:
            found["faults"].append(f"the server ended with {code}")
        if said := server.stderr.read_text():
            found["faults"].append(f"the server said: {said[-2000:]}")
        left = [path.name for path in Path(tmp).glob("tierline-*")]
        if left:
            found["faults"].append(f"folders are left: {left}")
    found |= {
        "roles": given.roles,
        "clients": given.clients,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[2],
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
