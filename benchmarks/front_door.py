"""How many image requests the front door takes, what it adds to each, and what a text stream beside them feels of it.

Setting. The server with an instant generator is a process of its own; the clients are another, on the same machine, and
count against the same cores. Every body holds one photo-like JPEG of about 200 KB (1000x750) as a data URI and asks for one
token. `known`: 64 images that come again and again, with their embeddings cached by the generator, so they are parsed and
hashed. `new`: no image comes twice (each has a comment of its own), so all are parsed, hashed and decoded to RGB. First as
many requests as go through (16 connections, each sending its next request when the last is answered), then at half that
rate, sent by the clock whatever has been answered; a request's time counts from when it was due. A third process reads a
text stream with a token every 20 ms. The floor is a server that reads the bodies and does nothing.

    python benchmarks/front_door.py --json docs/results/front_door.json
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import msgspec
import numpy as np

from tierline import __version__

IMAGES = 64
WIDTH, HEIGHT, QUALITY = 1000, 750, 60
CONNECTIONS = 16
GAP_S = 0.02
MARK = b"COMMENT00000"  # 12 bytes, so 16 characters of base64
QUESTION = "What is in this picture?"


# ---- server ----------------------------------------------------------------------------------------------------------


def serve(mode: str) -> None:
    """This process becomes the server. Prints its port."""
    from tierline.server.openai import FrontOptions, create_app, run
    from tierline.testing.instant import ByteText, InstantGenerator

    if mode == "floor":
        import uvicorn

        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(floor, log_level="warning", access_log=False)).run([listener])
        return
    generator = InstantGenerator(gap_s=GAP_S)
    generator.keep_requests = False
    generator.caches_images = mode == "known"
    app = create_app(ByteText(), generator, FrontOptions())
    run(app, port=0, started=lambda host, port: print(port, flush=True))


async def floor(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


@contextmanager
def server(mode: str) -> Iterator[tuple[int, int]]:
    """(port, process) of a server."""
    command = [sys.executable, __file__, "--serve", mode]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def busy_s() -> float:
    """CPU time that all processes of this machine have used."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system = map(int, file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def cpu_s(process: int) -> float:
    """CPU time that a process has used."""
    with open(f"/proc/{process}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- bodies ----------------------------------------------------------------------------------------------------------


def photo(seed: int) -> bytes:
    """A JPEG with the spectrum of a photograph (amplitude falls as 1/f) and a comment to be replaced."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :])
    frequency[0, 0] = 1
    light = rng.standard_normal((HEIGHT, WIDTH))
    planes = []
    for _ in range(3):
        noise = 0.8 * light + 0.2 * rng.standard_normal((HEIGHT, WIDTH))
        plane = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(HEIGHT, WIDTH))
        planes.append((plane - plane.mean()) / plane.std() * 50 + 120)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype("uint8")).save(file, "JPEG", quality=QUALITY)
    data = file.getvalue()
    comment = b"\xff\xfe" + (len(MARK) + 2).to_bytes(2, "big") + MARK
    return data[:2] + comment + data[2:]


def make_bodies() -> list[tuple[bytes, bytes]]:
    """Requests as bytes before and after the 16 characters of base64 that make an image new."""
    image = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,@"}}
    content = [{"type": "text", "text": QUESTION}, image]
    body = {"model": "instant", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    before, after = json.dumps(body).encode().split(b"@")
    found = []
    for seed in range(IMAGES):
        text = base64.b64encode(photo(seed))
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % (len(before) + len(text) + len(after))
        )
        assert text[8:24] == base64.b64encode(MARK)  # 6 bytes precede the comment: 8 characters
        found.append((head + before + text[:8], text[24:] + after))
    return found


def bodies(path: str) -> list[tuple[bytes, bytes]]:
    with open(path, "rb") as file:
        return msgspec.msgpack.decode(file.read(), type=list[tuple[bytes, bytes]])


# ---- clients ---------------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One keep-alive connection; `done` is told the status of each answer."""

    def __init__(self) -> None:
        self.done: Any = None
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, _, rest = self._data.partition(b"\r\n\r\n")
        place = head.lower().find(b"content-length: ")
        if place >= 0 and len(rest) >= int(head[place + 16 :].split(b"\r", 1)[0]):
            status, self._data = int(head[9:12]), b""
            self.done(self, status)

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None:
            self.done(self, 0)


class Load:
    """Sends image requests and keeps what became of them."""

    def __init__(self, path: str, is_new: bool) -> None:
        self.bodies = bodies(path)
        self.mark = base64.b64encode(MARK)
        self.is_new = is_new
        self.sent = 0
        self.start = time.time_ns()
        self.statuses: dict[int, int] = {}

    def send(self, connection: Connection) -> None:
        before, after = self.bodies[self.sent % IMAGES]
        self.sent += 1
        mark = base64.b64encode(b"%012d" % (self.start % 10**7 * 10**5 + self.sent)) if self.is_new else self.mark
        connection.transport.writelines((before, mark, after))

    def answered(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    async def connections(self, port: int) -> list[Connection]:
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(Connection, "127.0.0.1", port) for _ in range(CONNECTIONS)]
        return [connection for _, connection in made]

    async def full(self, port: int, seconds: float) -> dict[str, Any]:
        """As many as go through."""
        begun = time.perf_counter()
        end = begun + seconds
        over = asyncio.Event()
        busy = CONNECTIONS

        def done(connection: Connection, status: int) -> None:
            nonlocal busy
            self.answered(status)
            if status == 200 and time.perf_counter() < end:
                self.send(connection)
                return
            busy -= 1
            connection.done = None
            connection.transport.close()
            if not busy:
                over.set()

        for connection in await self.connections(port):
            connection.done = done
            self.send(connection)
        await over.wait()
        return {"per_s": self.statuses.get(200, 0) / (time.perf_counter() - begun)}

    async def paced(self, port: int, seconds: float, per_s: float) -> dict[str, Any]:
        """At a rate, with random gaps (Poisson), whether or not earlier ones were answered."""
        free = deque(await self.connections(port))
        due: deque[float] = deque()
        began: dict[Connection, float] = {}
        times: list[float] = []

        def done(connection: Connection, status: int) -> None:
            times.append(time.perf_counter() - began[connection])
            self.answered(status)
            free.append(connection)
            begin()

        def begin() -> None:
            while due and free:
                connection = free.popleft()
                began[connection] = due.popleft()
                self.send(connection)

        for connection in free:
            connection.done = done
        gaps = np.random.default_rng(0).exponential(1 / per_s, int(per_s * seconds))
        at = time.perf_counter()
        for gap in gaps:
            at += float(gap)
            wait_s = at - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            due.append(at)
            begin()
        while len(times) < len(gaps):
            await asyncio.sleep(0.01)
        for connection in free:
            connection.done = None
            connection.transport.close()
        return {"per_s": per_s, "ms": told(times)}


def load(path: str, kind: str, port: int, seconds: float, per_s: float, is_new: bool) -> dict[str, Any]:
    """One load, in a process of its own."""
    clients = Load(path, is_new)
    work = clients.full(port, seconds) if kind == "full" else clients.paced(port, seconds, per_s)
    factory = None
    if find_spec("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop
    begun = time.process_time()
    with asyncio.Runner(loop_factory=factory) as runner:
        found = runner.run(work)
    requests = sum(clients.statuses.values())
    return found | {"statuses": clients.statuses, "client_cpu_ms": 1e3 * (time.process_time() - begun) / requests}


def stream(port: int, seconds: float) -> dict[str, Any]:
    """Time between the tokens of a text stream, in ms, as its client sees it."""
    body = json.dumps(
        {
            "model": "instant",
            "prompt": "a stream",
            "stream": True,
            "ignore_eos": True,
            "max_tokens": int(seconds / GAP_S),
        }
    ).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    times: list[float] = []
    tail = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head % len(body) + body)
        while b"[DONE]" not in tail:
            data = connection.recv(65536)
            assert data
            now = time.perf_counter()
            times += [now] * data.count(b"data: {")
            tail = data[-64:]
    return told([after - before for before, after in itertools.pairwise(times)])


def told(seconds: list[float]) -> dict[str, Any]:
    """Percentiles in ms."""
    found = sorted(seconds)
    at = {f"p{p}": 1e3 * found[min(len(found) - 1, len(found) * p // 100)] for p in (50, 90, 99)}
    return at | {"max": 1e3 * found[-1], "mean": 1e3 * statistics.fmean(found), "count": len(found)}


# ---- the measurement -------------------------------------------------------------------------------------------------


def measure(path: str, mode: str, seconds: float) -> dict[str, Any]:
    is_new = mode == "new"
    with server(mode) as (port, process), ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        pool.submit(load, path, "full", port, 1.0, 0.0, is_new).result()  # warm: images known, threads there
        found: dict[str, Any] = {"mode": mode}
        begun, all_begun, at = cpu_s(process), busy_s(), time.perf_counter()
        found["full"] = pool.submit(load, path, "full", port, seconds, 0.0, is_new).result()
        requests = sum(found["full"]["statuses"].values())
        server_s, wall_s = cpu_s(process) - begun, time.perf_counter() - at
        found["full"]["server_cpu_ms"] = 1e3 * server_s / requests
        ours_s = server_s + found["full"]["client_cpu_ms"] * requests / 1e3
        found["full"]["others_cores"] = (busy_s() - all_begun - ours_s) / wall_s
        found["full"]["per_s_of_two_free_cores"] = 2 * requests / ours_s
        half = found["full"]["per_s"] / 2
        found["half"] = pool.submit(load, path, "paced", port, seconds, half, is_new).result()
        if mode != "floor":
            found["stream_alone_ms"] = pool.submit(stream, port, seconds).result()
            for kind in ("half", "full"):
                beside = pool.submit(load, path, "paced" if kind == "half" else "full", port, seconds + 2, half, is_new)
                time.sleep(1)  # bodies are being made
                found[f"stream_beside_{kind}_ms"] = pool.submit(stream, port, seconds - 2).result()
                beside.result()
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", default="", choices=["", "floor", "known", "new"], help="(internal)")
    parser.add_argument("--modes", default="floor,known,new")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="of everything; the median by requests/s is told")
    parser.add_argument("--json", default="", metavar="FILE|-")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return 0
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in given.modes.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bodies")
        made = make_bodies()
        with open(path, "wb") as file:
            file.write(msgspec.msgpack.encode(made))
        for _ in range(given.repeats):  # in turn, so that what else the machine does falls on all of them
            for mode, found in runs.items():
                found.append(measure(path, mode, given.seconds))
                tell(found[-1])
    rows = [sorted(found, key=lambda run: run["full"]["per_s"])[len(found) // 2] for found in runs.values()]
    for row in rows:
        row["all_per_s"] = [run["full"]["per_s"] for run in runs[row["mode"]]]
    result = {
        "tierline": __version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "uvloop": find_spec("uvloop") is not None,
        "httptools": find_spec("httptools") is not None,
        "body_bytes": sum(map(len, made[0])),
        "rows": rows,
    }
    if given.json:
        text = json.dumps(result, indent=1)
        if given.json == "-":
            print(text)
        else:
            with open(given.json, "w", encoding="utf-8") as file:
                file.write(text + "\n")
    return 0


def tell(row: dict[str, Any]) -> None:
    full, half = row["full"], row["half"]
    print(
        f"{row['mode']:6} {full['per_s']:7.0f} requests/s (server {full['server_cpu_ms']:.2f}, client"
        f" {full['client_cpu_ms']:.2f} ms CPU each); at {half['per_s']:.0f}/s p50 {half['ms']['p50']:.1f},"
        f" p99 {half['ms']['p99']:.1f} ms; {full['per_s_of_two_free_cores']:.0f}/s if both cores were free (others"
        f" took {full['others_cores']:.2f}); statuses {full['statuses']}",
        file=sys.stderr,
    )
    for name in ("alone", "beside_half", "beside_full"):
        if (gaps := row.get(f"stream_{name}_ms")) is not None:
            print(
                f"       stream {name}: p50 {gaps['p50']:.1f}, p99 {gaps['p99']:.1f}, max {gaps['max']:.1f} ms",
                file=sys.stderr,
            )


if __name__ == "__main__":
    sys.exit(main())
