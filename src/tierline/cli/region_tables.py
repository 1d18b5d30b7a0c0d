"""A region as rows of tables, lines of text and JSON: shared by `tierline run --share` and `tierline kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tierline.cli import render

if TYPE_CHECKING:
    from tierline.kernels.region import ClientSeen, KernelSeen, RegionSeen

CLIENTS = ("CLIENT", "PRIORITY", "LAUNCHES", "WAITED", "MEAN WAIT", "LONGEST", "FORCED", "SPEED", "CO-RUN", "MEMORY")
CLIENT_NUMBERS = CLIENTS[2:]
LIVE = ("CLIENT", "PRIORITY", "NOW", "SM", "BW", *CLIENTS[2:])
LIVE_NUMBERS = LIVE[3:]
KERNELS = ("SHARE", "LAUNCHES", "TIME", "SM", "BW", "BOUND", "KNOWN BY", "WAITED", "STRETCH", "GRID", "KERNEL")
KERNEL_NUMBERS = ("SHARE", "LAUNCHES", "TIME", "SM", "BW", "WAITED", "STRETCH", "GRID")
# What is left out first where a terminal is too narrow.
LEAST = (
    "FORCED",
    "LONGEST",
    "WAITED",
    "BW",
    "GRID",
    "KNOWN BY",
    "CO-RUN",
    "STRETCH",
    "PRIORITY",
    "MEAN WAIT",
    "MEMORY",
)
# Words of the core for a reader.
KNOWN_BY = {"none": "-", "learning": "learning", "assumed": "guess", "event": "event", "counters": "profile"}


def fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str]], least: Sequence[str] = LEAST
) -> tuple[list[str], list[list[str]]]:
    """The columns that fit the terminal next to each other, with their cells, those of `least` left out in its order; in a
    pipe all of them."""
    kept = list(range(len(columns)))
    if render.on_terminal():
        widths = [max(len(cell) for cell in column) + 2 for column in zip(columns, *rows, strict=True)]
        width = render.console().width + 2  # nothing stands behind the last one
        for name in least:
            if sum(widths[i] for i in kept) <= width:
                break
            kept = [i for i in kept if columns[i] != name]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def print_fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], least: Sequence[str] = LEAST
) -> None:
    some, cells = fitting(columns, rows, least)
    render.print_table(some, cells, right)


def span(time_ns: float) -> str:
    """Three digits in the unit that fits.

    >>> [span(t) for t in (0, 730, 15_300, 2_000_000, 7.5e9, 125e9)]
    ['-', '730ns', '15.3µs', '2.00ms', '7.50s', '125s']
    """
    if time_ns <= 0:
        return "-"
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if time_ns >= scale:
            value = time_ns / scale
            return (
                f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}" if value >= 10 else f"{value:.2f}{unit}"
            )
    return f"{time_ns:.0f}ns"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def client_cells(client: ClientSeen) -> list[str]:
    memory = render.size(client.memory_bytes) if client.memory_bytes or client.is_here else "-"
    if client.memory_cap_bytes:
        memory = f"{'cap' if memory == '-' else memory + ' of'} {render.size(client.memory_cap_bytes)}"
    if client.denied_allocations:
        memory += f", {client.denied_allocations} refused"
    return [
        str(client.launches),
        str(client.waited),
        span(client.mean_wait_ns),
        span(client.longest_wait_ns),
        str(client.forced),
        percent(client.speed),
        percent(client.corun_share if client.observed_busy_ns else None),
        memory,
    ]


def client_rows(region: RegionSeen) -> list[list[str]]:
    return [[client.label, client.priority, *client_cells(client)] for client in region.clients]


def live_rows(region: RegionSeen) -> list[list[str]]:
    rows = []
    for client in region.clients:
        now = "left" if not client.is_here else "waits" if client.is_waiting else "runs" if client.sm_util else "idle"
        sums = [percent(client.sm_util), percent(client.bw_util)]
        rows.append([client.label, client.priority, now, *sums, *client_cells(client)])
    return rows


def kernel_rows(region: RegionSeen, top: int) -> list[list[str]]:
    total = sum(kernel.time_ns for kernel in region.kernels)
    return [_kernel_cells(kernel, total) for kernel in launched(region)[:top]]


def launched(region: RegionSeen) -> list[KernelSeen]:
    """The ones with the most time first, without those that ran in graphs only: a graph counts as one kernel."""
    return [kernel for kernel in region.by_time if kernel.launches]


def _kernel_cells(kernel: KernelSeen, total_ns: int) -> list[str]:
    from tierline.kernels.demangle import readable

    is_known = kernel.source not in ("none", "learning")
    return [
        percent(kernel.time_ns / total_ns) if total_ns else "-",
        str(kernel.launches),
        span(kernel.duration_ns),
        percent(kernel.sm_util if is_known else None),
        percent(kernel.bw_util if is_known else None),
        kernel.bound if is_known else "-",
        KNOWN_BY.get(kernel.source, kernel.source),
        str(kernel.waited),
        "-" if kernel.stretch is None else f"{kernel.stretch:.2f}x",
        "x".join(map(str, kernel.grid)),
        readable(kernel.name),
    ]


def wait_lines(region: RegionSeen) -> list[str]:
    """`a waited 3.20ms for b`, the longest first."""
    return [f"{row.waiter} waited {span(row.wait_ns)} for {row.blamed}" for row in region.waits]


def sums_lines(region: RegionSeen) -> list[str]:
    """The largest sums against their limits, what that means, and what company cost high priority."""
    if not (region.peak_sm_util or region.peak_bw_util):
        return ["No two clients had work at once."]
    told = f"Largest sums with company: SM {percent(region.peak_sm_util)} of {percent(region.alpha)}, bandwidth "
    told += f"{percent(region.peak_bw_util)} of {percent(region.beta)}"
    excess = sum(client.excess for client in region.clients)
    if not excess:
        lines = [f"{told}; never over a limit."]
    elif region.mode == "latency":
        lines = [
            f"{told}.",
            f"Over a limit at {excess} admissions: mode latency lets high priority go at once.",
        ]
    else:
        lines = [f"{told}.", f"Over a limit at {excess} admissions."]
    lost = [client for client in region.clients if client.lost_ns > 0 and client.observed_busy_ns > 0]
    return lines + [
        f"{client.label} lost {span(client.lost_ns)} of {span(client.observed_busy_ns)} busy time to company "
        f"({client.lost_ns / client.observed_busy_ns:.1%})."
        for client in lost
    ]


def headline(region: RegionSeen) -> str:
    return f"{region.device} · policy {region.policy} · mode {region.mode}"


def as_json(region: RegionSeen, *, kernels: int | None = None) -> dict[str, Any]:
    """All but the trace, as plain data; `kernels` limits the kernels to so many, by their time."""
    shown: Sequence[KernelSeen] = region.by_time if kernels is None else region.by_time[:kernels]
    return {
        "region": str(region.path),
        "device": region.device,
        "simulated": region.is_simulated,
        "policy": region.policy,
        "mode": region.mode,
        "limits": {"sm": region.alpha, "bandwidth": region.beta},
        "peaks": {"sm": region.peak_sm_util, "bandwidth": region.peak_bw_util},
        "repairs": region.repairs,
        "reaped": region.reaped,
        "clients": [
            render.to_json(client)
            | {"speed": client.speed, "corun_share": client.corun_share, "mean_wait_ns": client.mean_wait_ns}
            for client in region.clients
        ],
        "kernels": [
            render.to_json(kernel) | {"key": f"{kernel.key:016x}", "time_ns": kernel.time_ns} for kernel in shown
        ],
        "waits": render.to_json(region.waits),
    }
