"""A real daemon in a process of its own, for tests that look at effects from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tierline.cli.client import Client
from tierline.config import DaemonOptions
from tierline.core.errors import DaemonUnavailable


def spawn_daemon(options: DaemonOptions, **environ: str) -> subprocess.Popen[str]:
    """The daemon's process; its first line on stdout, or its end, is still to come."""
    text = msgspec.json.encode(options, enc_hook=str).decode()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tierline.server", text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def answers(client: Client) -> bool:
    """Whether a daemon is there."""
    try:
        client.health()
    except DaemonUnavailable:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 60.0, poll_s: float = 0.05) -> None:
    """Returns once `condition` holds. Raises `AssertionError` naming `what` when it does not within `deadline_s`."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= give_up:
            raise AssertionError(f"gave up waiting until {what}")
        time.sleep(poll_s)


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon that answers; `client` speaks over its Unix socket, `tcp` is the base URL of its TCP address, `tokens`
    gives the token of each user."""

    process: subprocess.Popen[str]
    state: Path
    client: Client
    tcp: str
    tokens: Mapping[str, str]

    def over_tcp(self, method: str, path: str, *, user: str = "ann", **arguments: Any) -> httpx.Response:
        """One request over TCP as `user`."""
        headers = {"authorization": f"Bearer {self.tokens[user]}"} | arguments.pop("headers", {})
        return httpx.request(method, self.tcp + path, headers=headers, trust_env=False, **arguments)

    def over_socket(self) -> httpx.Client:
        """A plain HTTP client on the Unix socket; its URLs need a host: `tierline` or `localhost`."""
        transport = httpx.HTTPTransport(uds=str(self.state / "run" / "tierline.sock"))
        return httpx.Client(transport=transport, trust_env=False)
