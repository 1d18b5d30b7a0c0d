"""The front door over a generator of the test's, on a port of this machine, in a thread of this process."""

from __future__ import annotations

import threading
from typing import Any

from tierline.core.serving_contracts import ModelText
from tierline.server.openai import FrontOptions, create_app, run
from tierline.testing.instant import InstantGenerator


class Live:
    """Serves between enter and exit; `root` is its address, `url` ends in /v1."""

    def __init__(self, generator: InstantGenerator, text: ModelText, options: FrontOptions, **more: Any) -> None:
        self.generator = generator
        self.app = create_app(text, generator, options, **more)
        self.address = ("", 0)
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def root(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def _serve(self) -> None:
        try:
            run(self.app, port=0, started=self._started)
        finally:
            self._begun.set()

    def _started(self, host: str, port: int) -> None:
        self.address = (host, port)
        self._begun.set()

    def __enter__(self) -> Live:
        self._thread.start()
        self._begun.wait(30)
        assert self.address[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.app.state.front.end()
        self._thread.join(30)
        assert not self._thread.is_alive()
