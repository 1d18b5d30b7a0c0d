"""How KV blocks and embeddings travel between instances: through shared memory on one host, in the message itself between
hosts. The receiver copies what it gets into its own arena at once, so nobody ever holds another's memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import torch

NAME = re.compile(r"[A-Za-z0-9_~-]+\.[A-Za-z0-9_~-]+\.\d+")


class Carrier(Protocol):
    """`pack` gives the frames for a payload (uint8, flat) to `peer`; `unpack` the payload, or None when it is gone."""

    def pack(self, peer: str, payload: torch.Tensor) -> list[bytes]: ...

    def unpack(self, frames: list[bytes]) -> torch.Tensor | None: ...

    def forget(self, peer: str) -> None:
        """Take back what is on its way to a peer that is gone."""


class InMessage:
    """The bytes themselves, in blocks over ZeroMQ."""

    def pack(self, peer: str, payload: torch.Tensor) -> list[bytes]:
        return [b"bytes", payload.numpy().tobytes()]

    def unpack(self, frames: list[bytes]) -> torch.Tensor | None:
        data = bytearray(frames[1])
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def forget(self, peer: str) -> None:
        pass


class SharedMemory:
    """A file in `folder`, which lies in memory, named `sender.receiver.number`. The receiver maps it and removes its name, so
    it is gone when the mapping is; what a dead receiver left behind is removed by its sender (`forget`) and by `sweep`. Where
    the folder is full the bytes travel in the message."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._count = 0

    def pack(self, peer: str, payload: torch.Tensor) -> list[bytes]:
        if not payload.numel():  # a last round may have no blocks left, and nothing cannot be mapped
            return InMessage().pack(peer, payload)
        self._count += 1
        name = f"{self._name}.{peer}.{self._count}"
        descriptor = os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                payload.numpy().tofile(file)
        except OSError:
            (self._folder / name).unlink()
            return InMessage().pack(peer, payload)
        return [b"shm", name.encode()]

    def unpack(self, frames: list[bytes]) -> torch.Tensor | None:
        name = frames[1].decode("ascii", "replace")
        if not NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no name of a transfer")
        path = self._folder / name
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (FileNotFoundError, ValueError):
            return None  # swept: its sender is dead
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def forget(self, peer: str) -> None:
        for path in self._folder.glob(f"{self._name}.{peer}.*"):
            path.unlink(missing_ok=True)


def sweep(folder: Path, alive: Collection[str]) -> int:
    """Remove all transfers but those between instances that are alive; returns how many there were."""
    count = 0
    for path in folder.iterdir():
        if not all(name in alive for name in path.name.split(".")[:2]):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                count += 1
    return count
