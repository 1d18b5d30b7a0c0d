"""NVIDIA's multi-process service: without it, processes take turns on a GPU and their kernels never run together.

`start` starts one daemon for one device with pipes and logs in a folder of ours, where it may: `nvidia-cuda-mps-control` is
found and the device's compute mode allows it. Whatever keeps it from that is told as a sentence, never raised.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
DEFAULT_PIPES = Path("/tmp/nvidia-mps")
TURNS = "the programs' kernels take turns on the device, so that the gate orders them in time"
TIMEOUT_S = 20.0
_PROHIBITED = 2  # NVML_COMPUTEMODE_PROHIBITED


@dataclass(frozen=True, slots=True)
class Mps:
    """`is_on`: programs with `env` share the device at the same instant. `note` says how it is, or what keeps it off."""

    is_on: bool
    note: str
    env: Mapping[str, str] = field(default_factory=dict)
    is_ours: bool = False


def found() -> str:
    """Path of the control program, "" where there is none."""
    return shutil.which(CONTROL) or ""


def running(env: Mapping[str, str] = os.environ) -> Path | None:
    """The pipe folder of a daemon that answers; None when none does."""
    pipes = Path(env.get("CUDA_MPS_PIPE_DIRECTORY") or DEFAULT_PIPES)
    if not (pipes / "control").exists() or not found():
        return None
    return pipes if _ask("get_server_list", pipes) is None else None


def of_device(device: int, folder: Path) -> Mps:
    """What a program that comes later finds: the daemon that `start` began, or the user's own; nothing is started."""
    pipes = folder / f"mps-{device}"
    if (pipes / "control").exists() and _ask("get_server_list", pipes) is None:
        return Mps(True, f"MPS runs for device {device}.", {"CUDA_MPS_PIPE_DIRECTORY": str(pipes)})
    if (own := running()) is not None:
        return Mps(True, f"MPS runs already (pipes in {own}).")
    return Mps(False, f"MPS does not run: {TURNS}.")


def start(device: int, folder: Path) -> Mps:
    """Use the daemon that runs, else start one for the device with its pipes below `folder`."""
    control = found()
    if not control:
        return Mps(False, f"MPS is not there ({CONTROL} is not on PATH): {TURNS}.")
    if (pipes := running()) is not None:
        return Mps(True, f"MPS runs already (pipes in {pipes}).", {"CUDA_MPS_PIPE_DIRECTORY": str(pipes)})
    if _compute_mode(device) == _PROHIBITED:
        return Mps(False, f"MPS cannot be started (the compute mode of device {device} prohibits programs): {TURNS}.")
    pipes, logs = folder / f"mps-{device}", folder / f"mps-{device}-log"
    env = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
    try:
        pipes.mkdir(mode=0o700, exist_ok=True)
        logs.mkdir(mode=0o700, exist_ok=True)
        done = subprocess.run(
            [control, "-d"],
            env={**os.environ, **env, "CUDA_VISIBLE_DEVICES": str(device)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Mps(False, f"MPS cannot be started ({error}): {TURNS}.")
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        return Mps(False, f"MPS cannot be started ({said}): {TURNS}.")
    if (wrong := _ask("get_server_list", pipes)) is not None:
        return Mps(False, f"MPS was started and does not answer ({wrong}): {TURNS}.")
    return Mps(True, f"MPS was started for device {device}.", env, is_ours=True)


def stop(mps: Mps) -> None:
    """End the daemon if `start` began it."""
    if mps.is_ours:
        _ask("quit", Path(mps.env["CUDA_MPS_PIPE_DIRECTORY"]))


def _ask(command: str, pipes: Path) -> str | None:
    """None when the daemon took the command, else why not."""
    try:
        done = subprocess.run(
            [found() or CONTROL],
            input=f"{command}\n",
            env={**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipes)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else " ".join((done.stderr or done.stdout).split()) or "no answer"


def _compute_mode(device: int) -> int:
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetComputeMode(pynvml.nvmlDeviceGetHandleByIndex(device)))
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # NVML has one exception class per code; what it does not tell prohibits nothing
        return 0
