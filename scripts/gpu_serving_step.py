"""What the steps of scripts/gpu_serving.py are told, and how they tell: `tell(row)` as soon as a row is there."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]
Tell = Callable[[Row], None]


class Lacking(RuntimeError):
    """Something that a step needs is not here; the message says what."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`kinds`: checkpoints of the parity step (none = all there are), with so many `requests` each. `batches` of the
    throughput step; `rounds` of each way, alternating. `move_tokens`: sequences that are moved. `steps` of the memory
    step. `tower`: layers, hidden size and patches of a vision tower, beside iterations of `chunk_tokens`."""

    device: str
    kinds: tuple[str, ...]
    bf16_kinds: tuple[str, ...]
    requests: int
    shapes: tuple[str, ...]
    batches: tuple[int, ...]
    input_tokens: int
    output_tokens: int
    rounds: int
    move_tokens: tuple[int, ...]
    repeats: int
    embedding: tuple[int, int]  # tokens, hidden
    steps: int
    memory_shape: str
    memory_context: int
    kv_bytes: int
    tower: tuple[int, int, int]
    chunk_tokens: int

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device, 0) if self.device == "cuda" else torch.device(self.device)

    @property
    def two_devices(self) -> tuple[torch.device, torch.device]:
        """Where the two instances of a pair live."""
        second = self.device == "cuda" and torch.cuda.device_count() > 1
        return self.torch_device, torch.device("cuda", 1) if second else self.torch_device

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


FULL = Settings(
    device="cuda",
    kinds=(),
    bf16_kinds=("llama", "llava-clip"),
    requests=40,
    shapes=("smollm2-135m", "llama-3b"),
    batches=(32, 128, 16, 1),
    input_tokens=128,
    output_tokens=64,
    rounds=3,
    move_tokens=(1024, 4096),
    repeats=5,
    embedding=(576, 4096),
    steps=1000,
    memory_shape="smollm2-135m",
    memory_context=32768,
    kv_bytes=0,
    tower=(24, 1024, 4096),
    chunk_tokens=2048,
)
DRY = Settings(
    device="cpu",
    kinds=("llama", "llava-clip"),
    bf16_kinds=("llama",),
    requests=14,
    shapes=("tiny",),
    batches=(2,),
    input_tokens=12,
    output_tokens=6,
    rounds=2,
    move_tokens=(64, 100),
    repeats=2,
    embedding=(16, 64),
    steps=60,
    memory_shape="tiny",
    memory_context=512,
    kv_bytes=1 << 20,
    tower=(1, 64, 16),
    chunk_tokens=64,
)


def short(error: BaseException) -> str:
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each call, the device's work included; the first one is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def need_transformers() -> None:
    if version_of("transformers") is None:
        raise Lacking("transformers is not here.")
    import transformers

    untyped: Any = transformers
    untyped.utils.logging.set_verbosity_error()
    untyped.utils.logging.disable_progress_bar()
