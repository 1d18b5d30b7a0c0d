"""What `tierline run --share` does: several programs on one device, a live table, and a summary at the end."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tierline.cli import region_tables, render
from tierline.cli.run import check_installed, target

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tierline.backends.kernels.cuda import Company, Say
    from tierline.kernels.mps import Mps
    from tierline.kernels.region import RegionSeen

POLL_S = 0.05
LOOK_S = 0.5
TAKING_TURNS = "sequential"
"""The policy where kernels of two programs never run together: grouping them would only cost."""


def share(files: Sequence[Path], device: int, fake: str, policy: str | None, mode: str | None, as_json: bool) -> int:
    """Run the programs of `files` until all have ended. 0 when all ended with 0, 1 when not, 130 when interrupted."""
    from tierline.backends.kernels.cuda import Company, check_company
    from tierline.kernels import mps
    from tierline.kernels.place import managing, place_of
    from tierline.kernels.program import read_program
    from tierline.kernels.region import read_region

    programs = [read_program(path) for path in files]
    check_installed(fake)
    check_company(programs, fake)
    place = place_of(device, fake)
    with contextlib.ExitStack() as stack:
        stack.enter_context(managing(place))
        if fake:
            service = mps.Mps(True, f"Simulated device {fake}: no GPU is used.")
        else:
            service = mps.start(device, place.folder)
            stack.callback(mps.stop, service)
        where, users = target(device, fake, policy or (None if service.is_on else TAKING_TURNS), mode)
        console = render.console(stderr=as_json)
        console.print(f"tierline: {service.note}{_why(policy, service, where.policy)}", soft_wrap=True, style="dim")
        caught = stack.enter_context(_signals())  # before there is a program that has to be told
        company = stack.enter_context(
            Company(programs, where, users, service.env, _say(console, as_json, max(len(p.name) for p in programs)))
        )
        interrupted = _watch(company, place.region, console, caught)
        seen = read_region(place.region, changes=False)
    if as_json:
        render.print_json(_summary(company, seen, service))
    else:
        _show(company, seen)
    if interrupted:
        return 128 + interrupted
    return 0 if all(each.exit_code == 0 for each in company.running) else 1


def _why(given: str | None, service: Mps, policy: str) -> str:
    """Which policy holds where kernels cannot run together anyhow, and how to have another."""
    if service.is_on:
        return ""
    return f" Policy: {policy}{', as given' if given else '; --policy NAME sets another'}."


def _say(console: Console, as_json: bool, width: int) -> Say:
    """Prints a program's line behind its name: stdout to stdout and stderr to stderr, or all to stderr beside JSON."""
    lock = threading.Lock()

    def say(name: str, line: str, is_error: bool) -> None:
        with lock:
            if console.is_terminal:  # above the live table
                from rich.text import Text

                console.print(
                    Text.assemble((f"{name:{width}} | ", "red" if is_error else "cyan"), line), soft_wrap=True
                )
            else:
                print(f"{name:{width}} | {line}", file=sys.stderr if is_error or as_json else sys.stdout, flush=True)

    return say


def _watch(company: Company, region: Path, console: Console, caught: Sequence[int]) -> int:
    """Until all have ended. The first Ctrl-C (or SIGTERM) goes to the programs, a second kills them; returns the signal."""
    from tierline.kernels.region import read_region

    with _table(console) as update:
        passed_on, next_look_s = 0, 0.0
        while company.poll():
            if len(caught) > passed_on:
                company.send(caught[passed_on] if passed_on == 0 else signal.SIGKILL)
                passed_on += 1
            if console.is_terminal and time.monotonic() >= next_look_s:
                next_look_s = time.monotonic() + LOOK_S
                update(read_region(region, changes=False))
            time.sleep(POLL_S)
        return int(caught[0]) if caught else 0


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals that came while this lasts, in order."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _table(console: Console) -> Iterator[Callable[[RegionSeen], None]]:
    """The live table on a terminal; elsewhere nothing."""
    if not console.is_terminal:
        yield lambda region: None
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda region: live.update(_picture(region), refresh=True)


def _picture(region: RegionSeen) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    sums = (
        f"now SM {region_tables.percent(region.sm_util)} of {region_tables.percent(region.alpha)}, bandwidth "
        f"{region_tables.percent(region.bw_util)} of {region_tables.percent(region.beta)}"
    )
    here = [row for row in region_tables.live_rows(region) if row[2] != "left"]
    return Group(
        Text(region_tables.headline(region), style="bold"),
        Text(sums),
        render.rich_table(*region_tables.fitting(region_tables.LIVE, here), region_tables.LIVE_NUMBERS),
    )


def _of_this_run(company: Company, seen: RegionSeen) -> list[list[str]]:
    """The programs with what their clients did; a program without CUDA has none."""
    from tierline.kernels.region import together

    rows = []
    for each in company.running:
        name = each.program.name
        ours = [c for c in seen.clients if c.name == name]
        cells = region_tables.client_cells(together(ours)) if ours else ["no CUDA", *[""] * 7]
        code = "" if each.exit_code is None else str(each.exit_code)
        rows.append([name, each.program.priority, code, f"{each.seconds:.1f}", *cells])
    return rows


def _show(company: Company, seen: RegionSeen) -> None:
    columns = ("PROGRAM", "PRIORITY", "EXIT", "SECONDS", *region_tables.CLIENTS[2:])
    print(f"\n{region_tables.headline(seen)}")
    region_tables.print_fitting(columns, _of_this_run(company, seen), columns[2:])
    for line in region_tables.wait_lines(seen)[:6]:
        print(line)
    for line in region_tables.sums_lines(seen):
        print(line)
    print(f"More: tierline kernels report {seen.path.stem}")


def _summary(company: Company, seen: RegionSeen, service: Mps) -> dict[str, object]:
    return {
        "programs": [
            {
                "name": each.program.name,
                "argv": list(each.program.argv),
                "priority": each.program.priority,
                "exit_code": each.exit_code,
                "seconds": round(each.seconds, 3),
            }
            for each in company.running
        ],
        "mps": {"on": service.is_on, "note": service.note},
        **region_tables.as_json(seen),
    }
