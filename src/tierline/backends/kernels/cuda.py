"""Programs on a real (or fake) CUDA device under the interposer: one that replaces this process, or several that share.

The gate runs inside the programs; what is left to do here is their environment, their output and their ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from tierline.core.errors import InvalidInput
from tierline.kernels.environment import fake_environment, kernel_environment
from tierline.kernels.native import DeviceLimits
from tierline.kernels.place import DevicePlace
from tierline.kernels.program import Program

READERS_S = 2.0  # a process that left the program's session may hold its pipes open for ever
CANNOT_EXECUTE, NOT_FOUND = 126, 127  # as of env, nice and the shell

Say = Callable[[str, str, bool], None]
"""Called with a program's name, one line of its output, and whether that came from its stderr; from several threads."""


@dataclass(frozen=True, slots=True)
class Target:
    """The device to run on, as programs are told. `device` is its number, `fake` the simulated one's name or ""."""

    place: DevicePlace
    device: int
    fake: str
    policy: str
    mode: str
    limits: DeviceLimits | None


def program_environment(program: Program, target: Target, base: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of `program`: `base`, its own, then ours. A real device is the only one it sees, since the
    region stands for this one."""
    env = {**base, **dict(program.env)}
    env |= kernel_environment(
        target.place.region,
        target.policy,
        target.mode,
        program.priority,
        program.name,
        program.memory_bytes,
        profile=program.profile,
        device_spec=target.limits.spec if target.limits else "",
        base=env,
    )
    if target.fake:
        env |= fake_environment(target.fake, target.place.fake_device, env)
    else:
        env |= {"CUDA_VISIBLE_DEVICES": str(target.device), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return env


def check_executable(program: Program, fake: str) -> None:
    """That the program is there, told before a region is made for it. Raises `FileNotFoundError`, `PermissionError`."""
    env = {**os.environ, **dict(program.env)}
    path = (env | fake_environment(fake, base=env) if fake else env).get("PATH", os.defpath)
    command = program.argv[0]
    if "/" in command:  # from the program's own folder, as `exec` takes it
        there = (program.cwd or Path()) / command
        if there.is_file() and os.access(there, os.X_OK):
            return
        code = errno.EACCES if there.exists() else errno.ENOENT
    elif shutil.which(command, path=path):
        return
    else:
        code = errno.ENOENT
    raise OSError(code, os.strerror(code), command)


def check_company(programs: Sequence[Program], fake: str) -> None:
    """That all can be started and told apart, before anything is made. Raises `InvalidInput`."""
    names = [program.name for program in programs]
    for program in programs:
        if names.count(program.name) > 1:
            raise InvalidInput(f"two programs are called '{program.name}': give each a name of its own.")
        try:
            check_executable(program, fake)
        except OSError as error:
            raise _cannot_start(program, error) from None


def _cannot_start(program: Program, error: OSError) -> InvalidInput:
    return InvalidInput(f"'{program.argv[0]}' cannot be started: {error.strerror or error}.")


def replace_process(program: Program, target: Target, users: int) -> NoReturn:
    """Become the program: its exit code, signals and streams are then its own. `users` is the descriptor that marks the
    region as in use; it stays open. Raises `FileNotFoundError` or `OSError` when the program cannot be executed."""
    env = program_environment(program, target, os.environ)
    os.set_inheritable(users, True)
    os.execvpe(program.argv[0], program.argv, env)


@dataclass(slots=True)
class Running:
    """A program that was started. `exit_code` None while it runs; of a signal it is 128 + its number."""

    program: Program
    process: subprocess.Popen[bytes]
    readers: tuple[threading.Thread, ...]
    began_s: float
    ended_s: float = 0.0
    exit_code: int | None = None

    @property
    def seconds(self) -> float:
        return (self.ended_s or time.monotonic()) - self.began_s


class Company:
    """Several programs on one device. Use as a context manager: whoever is left at the end is killed."""

    def __init__(
        self, programs: Sequence[Program], target: Target, users: int, extra: Mapping[str, str], say: Say
    ) -> None:
        """`extra` goes into every environment (MPS), `users` is as in `replace_process`. Raises `InvalidInput`."""
        self.running: list[Running] = []
        self._say = say
        try:
            for program in programs:
                self.running.append(self._start(program, target, users, extra))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Company:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self) -> bool:
        """Take note of programs that have ended; True while any runs."""
        for each in self.running:
            if each.exit_code is None and (code := each.process.poll()) is not None:
                each.ended_s = time.monotonic()
                each.exit_code = code if code >= 0 else 128 - code
        return any(each.exit_code is None for each in self.running)

    def send(self, number: int) -> None:
        """A signal to all that run, with what they started."""
        for each in self.running:
            if each.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.process.pid, number)

    def close(self) -> None:
        self.send(signal.SIGKILL)
        for each in self.running:
            each.process.wait()
            for reader in each.readers:
                reader.join(READERS_S)
        self.poll()

    def _start(self, program: Program, target: Target, users: int, extra: Mapping[str, str]) -> Running:
        env = program_environment(program, target, {**os.environ, **extra})
        try:
            process = subprocess.Popen(
                program.argv,
                env=env,
                cwd=program.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(users,),
                start_new_session=True,
            )
        except OSError as error:
            raise _cannot_start(program, error) from None
        began_s = time.monotonic()
        streams = ((process.stdout, False), (process.stderr, True))
        readers = tuple(
            threading.Thread(target=self._forward, args=(program.name, stream, is_error), daemon=True)
            for stream, is_error in streams
        )
        for reader in readers:
            reader.start()
        return Running(program, process, readers, began_s)

    def _forward(self, name: str, stream: IO[bytes], is_error: bool) -> None:
        with stream:
            for line in stream:
                self._say(name, line.decode(errors="replace").rstrip("\n"), is_error)
