"""How many requests a second `tierline load` can send by the clock before it is itself what is measured.

Setting. A server that does nothing is a process of its own: it reads a body to its length and answers with the same
streamed chat answer, all at once (`chunks` events). The load generator is another process; both share this machine's
cores, so two are needed. Half of the requests hold a picture of about 700 tokens (a PNG of some kilobytes), texts are
of 300 tokens in the median. Printed: how late the sender was, its CPU time a request, and the time to the first token
that it saw, which with such a server is its own. `--live` takes the front door with an instant generator in the place
of the server that does nothing.

    python benchmarks/load_generator.py --rates 100,250,500,1000 --json docs/results/load_generator.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tierline

MODEL = b'{"object":"list","data":[{"id":"nothing","object":"model","max_model_len":131072}]}'


def event(choices: list[Any], **more: Any) -> bytes:
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": choices, **more}).encode() + b"\n\n"


def stream(chunks: int) -> bytes:
    """An answer of `chunks` tokens, as chunks of HTTP."""
    events = [event([{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]) for _ in range(chunks)]
    events.append(event([{"index": 0, "delta": {}, "finish_reason": "length"}]))
    events.append(event([], usage={"prompt_tokens": 300, "completion_tokens": chunks}))
    events.append(b"data: [DONE]\n\n")
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in events) + b"0\r\n\r\n"


class Nothing(asyncio.Protocol):
    """Answers every request at once."""

    def __init__(self, chunks: int) -> None:
        self._answer = (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + stream(chunks)
        )
        whole = json.dumps({"choices": [], "usage": {"prompt_tokens": 300, "completion_tokens": 1}}).encode()
        self._whole = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(whole), whole)
        self._models = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(MODEL), MODEL)
        self._missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
        self._head = b""
        self._left = 0
        self._streams = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data, self._head = self._head[:end].lower(), self._head[end + 4 :], b""
            self._left = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            if head.startswith(b"get"):
                self._transport.write(self._models)
                return
            if b"/tokenize" in head:
                self._transport.write(self._missing)
                self._left = 0
                return
            self._streams = b'"stream": true' in data[:400]
        self._left -= len(data)
        if not self._left:
            self._transport.write(self._answer if self._streams else self._whole)


def serve(kind: str, chunks: int) -> None:
    if kind == "live":
        from tierline.core.request import ServedModel
        from tierline.server.openai import FrontOptions, create_app, run
        from tierline.testing.instant import ByteText, InstantGenerator

        generator = InstantGenerator()
        generator.keep_requests = False
        text = ByteText(ServedModel("instant", 1 << 20, True, 258, (256,), max_images=16))
        run(create_app(text, generator, FrontOptions()), port=0, started=lambda host, port: print(port, flush=True))
        return
    import uvloop

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Nothing(chunks), "127.0.0.1", 0, backlog=4096)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(forever())


@contextmanager
def server(kind: str, chunks: int) -> Iterator[int]:
    command = [sys.executable, __file__, "--serve", kind, "--chunks", str(chunks)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(timeout=60)


def measure(port: int, rate: float, seconds: float, chunks: int) -> dict[str, Any]:
    """One run of `tierline load` as a process of its own."""
    source = f"synthetic?rate={rate:g}&seconds={seconds:g}&output_tokens={chunks}&output_sigma=0&cv=1"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "tierline.cli.main", "load", f"http://127.0.0.1:{port}", source, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(done.stdout)
    figures = told["report"]["all"]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rate": rate,
        "requests": figures["requests"],
        "finished": figures["finished"],
        "answered_per_s": figures["requests_per_s"],
        "late_p50_ms": 1e3 * told["sender"]["late_p50_s"],
        "late_p99_ms": 1e3 * told["sender"]["late_p99_s"],
        "ttft_p50_ms": 1e3 * figures["ttft"]["p50"],
        "ttft_p99_ms": 1e3 * figures["ttft"]["p99"],
        "client_cpu_ms": 1e3 * cpu_s / figures["requests"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="100,250,500,1000")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--json", default="")
    parser.add_argument("--serve", default="")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.chunks)
        return
    rows = []
    with server("live" if options.live else "nothing", options.chunks) as port:
        for rate in map(float, options.rates.split(",")):
            rows.append(measure(port, rate, options.seconds, options.chunks))
            print({key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    if options.json:
        told = {
            "version": tierline.__version__,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "server": "front door, instant generator" if options.live else "does nothing",
            "chunks": options.chunks,
            "rows": rows,
        }
        with open(options.json, "w") as file:
            json.dump(told, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
