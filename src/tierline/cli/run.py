"""`tierline run`: a program on a device that others use too, kernel by kernel; `--share` starts several at once."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tierline.backends.kernels.cuda import Target
    from tierline.kernels.program import Program

Device = Annotated[
    int | None,
    typer.Option("--device", metavar="N", help="GPU by number. [default: the first of $CUDA_VISIBLE_DEVICES, else 0]"),
]
Fake = Annotated[
    str,
    typer.Option("--fake", metavar="h200|a100|v100", help="A simulated device: try it without a GPU."),
]


def register(app: typer.Typer) -> None:
    # Options stand before the command; whatever follows its first word is the command's own.
    settings = {"allow_interspersed_args": False}
    app.command("run", rich_help_panel="Sharing a GPU", context_settings=settings)(run)


def run(
    argv: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD... | A.toml B.toml...", help="Run without a shell.")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Start the programs of several TOML files together.")] = False,
    priority: Annotated[
        str, typer.Option(metavar="high|best-effort", help="Best effort makes room for high priority.")
    ] = "",
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="See `tierline kernels policies`. [default: interference]")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="strict|latency", help="Never over the limits, or never hold high priority. [default: latency]"
        ),
    ] = None,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Cap on device memory, as in 8GiB.")] = "",
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernel profiles as CSV, so that nothing has to be learnt.")
    ] = None,
    device: Device = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="What the program is called in reports.")] = "",
    fake: Fake = "",
    as_json: Annotated[bool, typer.Option("--json", help="With --share: print the summary as JSON.")] = False,
) -> None:
    """Run a program so that it shares its GPU with others: their kernels run together while both SM and memory-bandwidth
    use stay within the device's limits.

    The program replaces this process: its exit code, signals and streams are its own. A program without CUDA runs as ever.
    `--share` starts several and shows them live; `tierline kernels report` tells what happened.

    Examples: `tierline run --priority high -- python serve.py` beside `tierline run -- python train.py`;
    `tierline run --share serve.toml train.toml`; without a GPU: `tierline run --fake h200 -- ./program`
    """
    from tierline.core.errors import InvalidInput
    from tierline.policies.kernels import kernel_mode, kernel_policy, kernel_priority

    words = list(argv or [])
    if policy is not None:
        kernel_policy(policy)
    if mode is not None:
        kernel_mode(mode)
    if share:
        given = {"--priority": priority, "--memory": memory, "--profile": profile, "--name": name}
        for option, value in given.items():
            if value:
                raise InvalidInput(f"{option} stands in each program's TOML file, not beside --share.")
        late = [word for word in words if word.startswith("-")]
        if late:
            raise InvalidInput(f"'{late[0]}' stands behind a file: options stand before the first file.")
        if not words:
            raise InvalidInput(
                "--share needs the TOML files of the programs, as in `tierline run --share a.toml b.toml`."
            )
        from tierline.cli import share as share_command

        raise typer.Exit(
            share_command.share([Path(word) for word in words], _device(device), fake, policy, mode, as_json)
        )
    if as_json:
        raise InvalidInput("--json goes with --share; for one program see `tierline kernels report --json`.")
    if not words:
        raise InvalidInput("no command is given, as in `tierline run -- python train.py`.")
    from tierline.kernels.program import Program, check_profile, client_name, memory_bytes
    from tierline.policies.kernels import DEFAULT_PRIORITY

    program = Program(
        tuple(words),
        client_name(name, words),
        kernel_priority(priority or DEFAULT_PRIORITY),
        memory_bytes(memory),
        check_profile(profile),
    )
    _replace(program, _device(device), fake, policy, mode)


def _device(given: int | None) -> int:
    """The one asked for, else the first that CUDA_VISIBLE_DEVICES lists, else 0."""
    from tierline.core.errors import InvalidInput

    if given is not None:
        return given
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first and not first.isdigit():
        raise InvalidInput(
            f"CUDA_VISIBLE_DEVICES begins with '{first}', which is no number: name the device, --device N."
        )
    return int(first or 0)


def check_installed(fake: str) -> None:
    """What is missing or unknown is told before anything is made. Raises `UnknownName`, `MissingNative`."""
    from tierline.core.errors import UnknownName
    from tierline.kernels import environment

    if fake and fake not in environment.FAKE_DEVICES:
        raise UnknownName("simulated device", fake, environment.FAKE_DEVICES)
    environment.library_path()
    if fake:
        environment.fake_folder()


def target(device: int, fake: str, policy: str | None, mode: str | None) -> tuple[Target, int]:
    """The device with its region made or joined, and the descriptor that marks the region as in use."""
    from tierline.backends.kernels.cuda import Target
    from tierline.kernels.calibration import known_limits
    from tierline.kernels.native import open_region
    from tierline.kernels.place import place_of, take_region

    place, limits = place_of(device, fake), known_limits(device, fake)
    users = take_region(place, policy, mode, limits)
    config = open_region(place.region).config()
    return Target(place, device, fake, config.policy, config.mode, limits), users


def _replace(program: Program, device: int, fake: str, policy: str | None, mode: str | None) -> None:
    from tierline.backends.kernels.cuda import check_executable, replace_process
    from tierline.kernels import mps
    from tierline.kernels.region import read_region

    check_installed(fake)
    with _as_a_shell(program):
        check_executable(program, fake)
    where, users = target(device, fake, policy, mode)
    if fake:
        print(f"tierline: {program.name} runs on a simulated device ({fake}); no GPU is used.", file=sys.stderr)
    else:
        service = mps.of_device(device, where.place.folder)
        program = replace(program, env=tuple(service.env.items()))
        others = sum(client.is_here for client in read_region(where.place.region, changes=False).clients)
        if others and not service.is_on:
            print(f"tierline: {where.place.title} has {others} other client(s). {service.note}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    with _as_a_shell(program):
        replace_process(program, where, users)


@contextlib.contextmanager
def _as_a_shell(program: Program) -> Iterator[None]:
    """A program that cannot be executed is told with the shell's exit code."""
    from tierline.backends.kernels.cuda import CANNOT_EXECUTE, NOT_FOUND

    try:
        yield
    except OSError as error:
        print(f"tierline: '{program.argv[0]}' cannot be executed: {error.strerror or error}.", file=sys.stderr)
        raise typer.Exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE) from None
