"""A model's weights leave their device for the host's memory, and come back: what vLLM calls sleep of level 1.

Not yet tried on a GPU. On a CPU the weights stay where they are, and only what the C library keeps of freed memory is given
back to the system.
"""

from __future__ import annotations

import ctypes
import itertools

import torch


def leave(model: torch.nn.Module, device: torch.device) -> None:
    """Call it last, when all else that was on the device has been let go."""
    if device.type == "cpu":
        _trim()
        return
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        # Pinned: it comes back at the speed of the bus. Shared weights are one tensor each, so they stay shared.
        tensor.data = tensor.data.cpu().pin_memory()
    torch.cuda.empty_cache()


def come_back(model: torch.nn.Module, device: torch.device) -> None:
    if device.type == "cpu":
        return
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        tensor.data = tensor.data.to(device, non_blocking=True)
    torch.cuda.synchronize(device)


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
