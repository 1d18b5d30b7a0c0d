"""How results look: a Rich table on a terminal, plain columns in a pipe, JSON for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tierline.core.nouns import NS_PER_S

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

PHASE_STYLE = {
    "running": "green",
    "starting": "green",
    "releasing": "yellow",
    "queued": "cyan",
    "waiting": "dim",
    "held": "yellow",
    "completed": "dim",
    "stopped": "dim",
    "failed": "red",
}
LEAST_WIDTH = 16  # of a last column that is cut off
SPARKS = "▁▂▃▄▅▆▇█"


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def progress(doing: str) -> Progress:
    """A bar with a count on stderr when somebody watches; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    described = TextColumn("{task.description}")
    return Progress(*columns, described, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def on_terminal() -> bool:
    return sys.stdout.isatty()


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits without noise; `-` for what is not known."""
    return "-" if value is None else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """12s, 4m10s, 3h05m, 2d04h.

    >>> [duration(s) for s in (0.4, 12, 250, 11100, 187200)]
    ['0s', '12s', '4m10s', '3h05m', '2d04h']
    """
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def seconds(time_ns: int) -> float:
    return time_ns / NS_PER_S


def size(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least one.

    >>> [size(n) for n in (512, 24 << 30)]
    ['512 B', '24.0 GiB']
    """
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def latency(seconds: float | None) -> str:
    """Milliseconds or seconds with three digits; `-` where nothing was measured.

    >>> [latency(x) for x in (0.0123, 1.5, 73.4, float("nan"), None)]
    ['12.3ms', '1.50s', '73.4s', '-', '-']
    """
    if seconds is None or math.isnan(seconds):
        return "-"
    if seconds < 1.0:
        return f"{1000 * seconds:.3g}ms"
    return f"{seconds:.2f}s" if seconds < 10.0 else f"{seconds:.1f}s"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The course of `values` in `width` characters, low to high.

    >>> sparkline([8, 4, 2, 1, 1])
    '█▄▂▁▁'
    """
    if not values:
        return ""
    points = [values[i * len(values) // width] for i in range(width)] if len(values) > width else list(values)
    low, high = min(points), max(points)
    if high <= low:
        return SPARKS[0] * len(points)
    return "".join(SPARKS[int((v - low) / (high - low) * (len(SPARKS) - 1) + 0.5)] for v in points)


def to_json(value: Any) -> Any:
    """Dataclasses and tuples as plain data that `json` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def print_json(value: Any) -> None:
    print(json.dumps(to_json(value), indent=2, ensure_ascii=False))


def rich_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = (), *, wrap: bool = False
) -> Table:
    """A table without borders; `right` names the columns of numbers. On a narrow terminal the last column is cut off, or
    with `wrap` goes on in further lines; the others keep their width."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        wraps = wrap and i == len(columns) - 1
        table.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
        )
    lines = [list(row) for row in rows]
    if not wrap:
        others = sum(max(len(line[i]) for line in [list(columns), *lines]) + 2 for i in range(len(columns) - 1))
        room = max(console().width - others, LEAST_WIDTH)
        lines = [[*line[:-1], line[-1] if len(line[-1]) <= room else f"{line[-1][: room - 1]}…"] for line in lines]
    for line in lines:
        table.add_row(*(Text(cell, style=PHASE_STYLE.get(cell, "")) for cell in line))
    return table


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> str:
    """The same as aligned text, nothing cut off, for pipes and log files.

    >>> print(plain_table(["JOB", "LOSS"], [["a", "0.5"], ["bcd", "12"]], right=["LOSS"]))
    JOB  LOSS
    a     0.5
    bcd    12
    """
    lines = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    )


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = (), *, wrap: bool = False
) -> None:
    if on_terminal():
        console().print(rich_table(columns, rows, right, wrap=wrap))
    else:
        print(plain_table(columns, rows, right))
