"""The process of `tierline serve`: `python -m tierline.server.openai FD`; an `Order` as JSON is read from that descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator

import msgspec
from fastapi import FastAPI

from tierline.core.errors import TierlineError
from tierline.deployment import DeploymentOptions, build_generator, build_text, need_serve_extra, what_differs
from tierline.server.openai.app import create_app
from tierline.server.openai.options import FrontOptions
from tierline.server.openai.run import check_listen, run

EXIT_BAD_INPUT = 2
POLL_S = 0.05


class Order(msgspec.Struct, frozen=True):
    """What to serve and where. `served_name` "" = the model's own."""

    deployment: DeploymentOptions
    front: FrontOptions
    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str = ""


def main(order: Order) -> int:
    need_serve_extra()
    check_listen(order.host, order.front)
    began = time.monotonic()
    failures: list[str] = []
    failed = threading.Event()

    def failed_start(sentence: str) -> None:
        failures.append(sentence)
        failed.set()

    for number in (signal.SIGTERM, signal.SIGINT):  # until the server has handlers of its own: ends what has begun
        signal.signal(number, lambda *_: sys.exit(0))
    if sentence := what_differs(order.deployment):
        print(f"tierline: {sentence}", file=sys.stderr, flush=True)
    generator = build_generator(order.deployment, failed_start)
    try:
        text = build_text(order.deployment, order.served_name)

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            del app
            task = asyncio.create_task(_announce())
            try:
                yield
            finally:
                task.cancel()

        async def _announce() -> None:
            """Say when all instances are there, or why one never will be."""
            wanted = len(order.deployment.layout)
            while len(generator.status()["instances"]) < wanted and not failed.is_set():
                await asyncio.sleep(POLL_S)
            if failed.is_set():
                print(f"tierline: an instance cannot be started: {failures[0]}", file=sys.stderr, flush=True)
                await asyncio.to_thread(generator.close)
                os._exit(EXIT_BAD_INPUT)
            print(f"Ready after {time.monotonic() - began:.1f} s: {wanted} instances of {text.model.name}.", flush=True)

        def started(host: str, port: int) -> None:
            shown = f"[{host}]" if ":" in host else host
            print(f"Listening on http://{shown}:{port}", flush=True)

        app = create_app(text, generator, order.front, lifespan=lifespan)
        run(app, order.host, order.port, started=started)
    finally:
        generator.close()
    return 0


if __name__ == "__main__":
    try:
        with open(int(sys.argv[1]), "rb") as pipe:
            told = msgspec.json.decode(pipe.read(), type=Order)
        code = main(told)
        gc.freeze()  # to look through PyTorch's modules for what to collect would take a second
        sys.exit(code)
    except TierlineError as error:
        print(f"tierline: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
