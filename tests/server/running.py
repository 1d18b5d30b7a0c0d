"""A real daemon with four CPU slots, a Unix socket, and a TCP port on loopback, as its tests see it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx

from tierline.cli.client import Client

DEADLINE_S = 60.0
ANN, BOB = "a-token-of-ann-0123456789", "a-token-of-bob-0123456789"


@dataclass(frozen=True)
class Running:
    """`tcp` is the base URL of its TCP address."""

    process: subprocess.Popen[str]
    state: Path
    client: Client
    tcp: str

    def request(
        self, method: str, path: str, *, token: str = ANN, headers: dict[str, str] | None = None, **more: object
    ) -> httpx.Response:
        """One request over TCP as a token's user ("" = without a token)."""
        bearer = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.request(method, self.tcp + path, headers=bearer | (headers or {}), trust_env=False, **more)  # type: ignore[arg-type]
