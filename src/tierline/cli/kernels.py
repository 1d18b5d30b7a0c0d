"""`tierline kernels`: what happened on a shared device, kernel profiles, and the policies of the kernel tier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli import region_tables, render

if TYPE_CHECKING:
    from tierline.kernels.profile import KernelProfile
    from tierline.kernels.region import RegionSeen

MATRIX = 8  # clients; more are told as lines
COURSE_WIDTH = 72
COURSE_WORDS = 48  # what stands beside the bars
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
RegionName = Annotated[
    str,
    typer.Argument(metavar="[REGION|NAME]", help="A device's number, a name of `kernels list`, or a region's file."),
]


def register(app: typer.Typer) -> None:
    kernels = typer.Typer(help="Look at shared devices, kernel by kernel.", no_args_is_help=True)
    kernels.command("report")(report)
    kernels.command("list")(regions)
    kernels.command("profile")(profile)
    kernels.command("policies")(policies)
    kernels.callback()(_kernels)
    app.add_typer(kernels, name="kernels", rich_help_panel="Sharing a GPU")


def _kernels() -> None:
    """Look at shared devices, kernel by kernel: as in `tierline kernels report 0`."""


def report(
    region: RegionName = "0",
    top: Annotated[int, typer.Option(min=1, help="Kernels to show.")] = 10,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw both sums over time.")] = None,
    window: Annotated[
        str, typer.Option(metavar="FROM:TO", help="Milliseconds of the trace that the picture shows.")
    ] = "",
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write a timeline for Perfetto (ui.perfetto.dev).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell who ran on a device, who waited for whom, which kernels took the time, and how full the device was. It works while
    programs run and after they have ended.

    Example: `tierline kernels report 0 --picture shared.png --trace shared.json`
    """
    from tierline.core.errors import InvalidInput
    from tierline.kernels.place import find_region
    from tierline.kernels.region import read_region

    between = _window(window)
    if between and picture is None:
        raise InvalidInput("--window narrows the picture: give --picture FILE.png too.")
    seen = read_region(find_region(region))
    if picture is not None:
        from tierline.kernels.picture import draw

        draw(seen, picture, between)
    if trace is not None:
        from tierline.kernels.trace import write_trace

        write_trace(seen, trace)
    if as_json:
        render.print_json(region_tables.as_json(seen, kernels=top))
        return
    show(seen, top)
    for path, what in ((picture, "picture"), (trace, "timeline")):
        if path is not None:
            print(f"\nThe {what} is in {path}.")


def show(seen: RegionSeen, top: int) -> None:
    heads = region_tables
    print(f"{heads.headline(seen)}\n")
    if not seen.clients:
        print("No program has used this device yet.")
        return
    heads.print_fitting(heads.CLIENTS, heads.client_rows(seen), heads.CLIENT_NUMBERS)
    print(f"\nWho waited for whom: {'nobody waited' if not seen.waits else 'the row for the column'}")
    if seen.waits:
        _show_waits(seen)
    rows = heads.kernel_rows(seen, top)
    there = len(heads.launched(seen))
    more = f" of {there}" if there > top else ""
    print(f"\nKernels by time: {len(rows)}{more}")
    if rows:
        heads.print_fitting(heads.KERNELS, rows, heads.KERNEL_NUMBERS)
    print()
    for line in course_lines(seen):
        print(line)
    for line in heads.sums_lines(seen):
        print(line)
    if seen.reaped:
        print(f"Programs that died without leaving, their share given back: {seen.reaped}")
    if seen.repairs:
        print(f"Programs that died within a decision, all sums computed anew: {seen.repairs}")


def _show_waits(seen: RegionSeen) -> None:
    blamed = list(dict.fromkeys(row.blamed for row in seen.waits))
    waiters = list(dict.fromkeys(row.waiter for row in seen.waits))
    if len(blamed) > MATRIX:
        for line in region_tables.wait_lines(seen)[: 2 * MATRIX]:
            print(f"  {line}")
        return
    cells = {(row.waiter, row.blamed): region_tables.span(row.wait_ns) for row in seen.waits}
    columns = ("WAITED", *(f"FOR {name}" for name in blamed))
    render.print_table(columns, [[w, *(cells.get((w, b), "-") for b in blamed)] for w in waiters], columns[1:])


def course_lines(seen: RegionSeen) -> list[str]:
    """Both sums over time as bars of the means, with the largest value at the end of the line."""
    from tierline.kernels.course import bars, course, time_limited

    width = max(min(COURSE_WIDTH, render.console().width - COURSE_WORDS), 20) if render.on_terminal() else COURSE_WIDTH
    found = course(seen, width)
    if not found.sm_mean:
        return ["The trace is empty."]
    column = region_tables.span(found.stretch_ns)
    top = max(1.0, *found.sm_mean, *found.bw_mean)
    lines = [f"Both sums over {time_limited(seen)}, a column the mean over {column}, 0 to {100 * top:.0f} %:"]
    for name, mean, peak, limit in (
        ("SM", found.sm_mean, found.sm_peak, seen.alpha),
        ("bandwidth", found.bw_mean, found.bw_peak, seen.beta),
    ):
        told = f"mean {sum(mean) / len(mean):4.0%}  largest {max(peak):4.0%}  limit {limit:.0%}"
        lines.append(f"{name:>9} |{bars(mean, top)}| {told}")
    return lines


def _window(text: str) -> tuple[float, float] | None:
    from tierline.core.errors import InvalidInput

    if not text:
        return None
    begin, colon, end = text.partition(":")
    try:
        if colon:
            return float(begin or 0), float(end)
    except ValueError:
        pass
    raise InvalidInput(f"--window '{text}': two times in milliseconds are needed, as in 10:20.")


def regions(as_json: AsJson = False) -> None:
    """List the devices that programs share or have shared on this machine.

    Example: `tierline kernels list`
    """
    from tierline.core.errors import InvalidInput
    from tierline.kernels.place import DevicePlace, manager_pid, runtime_dir
    from tierline.kernels.region import read_region

    folder = runtime_dir()
    found: list[dict[str, object]] = []
    for path in sorted(folder.glob("*.region")):
        try:
            seen = read_region(path, changes=False)
        except InvalidInput as error:
            found.append({"name": path.stem, "error": str(error)})
            continue
        found.append(
            {
                "name": path.stem,
                "simulated": seen.is_simulated,
                "policy": seen.policy,
                "mode": seen.mode,
                "manager_pid": manager_pid(DevicePlace(folder, path.stem)),
                "clients_here": sum(client.is_here for client in seen.clients),
                "clients": len(seen.clients),
                "launches": sum(client.launches for client in seen.clients),
            }
        )
    if as_json:
        render.print_json({"regions": found})
        return
    if not found:
        print(f"No device is shared here yet (nothing in {folder}): `tierline run -- CMD` begins.")
        return
    columns = ("REGION", "POLICY", "MODE", "CLIENTS HERE", "LAUNCHES", "MANAGER")
    rows = [
        [row["name"], "-", "-", "-", "-", row["error"]]
        if "error" in row
        else [
            row["name"], row["policy"], row["mode"], f"{row['clients_here']} of {row['clients']}", row["launches"],
            row["manager_pid"] or "-",
        ]
        for row in found
    ]  # fmt: skip
    render.print_table(columns, [[str(cell) for cell in row] for row in rows], columns[3:5])


PROFILE_COLUMNS = ("KERNEL", "GRID", "BLOCK", "TIME", "SM", "BW", "BOUND", "SAMPLES", "SOURCE")


def profile(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE.csv|REGION", help="A profile of ours, Orion's or Nsight Compute's, or a region."),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.csv", help="Write it as ours.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read kernel profiles, check them and convert them: what a region has learnt, an Orion file (keyed by name, not by its
    order), or `ncu --csv --page raw --print-kernel-base mangled`.

    Example: `tierline kernels profile 0 -o learnt.csv`, then `tierline run --profile learnt.csv -- python train.py`
    """
    from tierline.kernels.foreign_profiles import bound_class, import_profiles, learned_profiles
    from tierline.kernels.place import find_region
    from tierline.kernels.profile import write_profiles
    from tierline.kernels.region import read_region

    rows: list[KernelProfile]
    if source.endswith(".csv"):
        rows = import_profiles(Path(source))
    else:
        rows = learned_profiles(read_region(find_region(source), changes=False))
    if output is not None:
        write_profiles(rows, output)
        print(f"{len(rows)} kernels written to {output}.")
        return
    if as_json:
        render.print_json({"profiles": rows})
        return
    render.print_table(
        PROFILE_COLUMNS,
        [
            [
                row.name,
                "x".join(map(str, row.grid)) if any(row.grid) else "any",
                "x".join(map(str, row.block)) if any(row.block) else "any",
                region_tables.span(row.duration_ns),
                region_tables.percent(row.sm_util or None),
                region_tables.percent(row.bw_util or None),
                bound_class(row),
                str(row.samples),
                row.source,
            ]
            for row in rows
        ],
        PROFILE_COLUMNS[1:6],
    )


def policies(as_json: AsJson = False) -> None:
    """List the policies of the kernel tier: what each one does and where it comes from.

    Example: `tierline kernels policies`, then `tierline run --policy orion -- python train.py`
    """
    from tierline.cli.policies import sections
    from tierline.policies.kernels import POLICIES

    known = [{"name": policy.name, **sections(policy.doc), "limits": policy.limits} for policy in POLICIES.values()]
    if as_json:
        render.print_json({"policies": known})
        return
    columns = ("POLICY", "KEEPS LIMITS", "IDEA, AND WHERE IT IS FROM")
    rows = [
        [str(p["name"]), "yes" if p["limits"] else "no", f"{p['idea']} ({str(p['source']).rstrip('.')})"] for p in known
    ]
    render.print_table(columns, rows, wrap=True)
