"""Kernel profiles: what a kernel uses when it runs alone, one row a kernel key, as CSV.

A kernel is known by (name, grid, block, dynamic shared memory, tagged shape), never by its place in a sequence. The column
`key` is the core's 64-bit hash of these, as hexadecimal digits; where it is empty a row holds for every kernel of that name
whose other columns, as far as they are given, agree. Utilisations are shares of the device's peak (0 to 1). Columns may
stand in any order; `name` and `duration_ns` are needed, all others may be missing or empty, which means "unknown".
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from tierline.core.errors import InvalidInput, NotFound

ProfileSource = Literal["ncu", "event", "roofline", "default", "orion"]
SOURCES: tuple[str, ...] = get_args(ProfileSource)
Triple = tuple[int, int, int]
NEEDED = ("name", "duration_ns")


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """One row. 0 = unknown, for `key`, `occupancy` (blocks per SM), `waves`, `duration_ns`, `bytes` (moved to and from
    memory), `flops`; `grid`, `block` (0, 0, 0) = any. `sm_blocks` are the SMs it occupies, `samples` launches behind it."""

    name: str
    duration_ns: int
    key: int = 0
    grid: Triple = (0, 0, 0)
    block: Triple = (0, 0, 0)
    registers: int = 0
    smem_static_bytes: int = 0
    smem_dynamic_bytes: int = 0
    occupancy: int = 0
    waves: float = 0.0
    sm_blocks: int = 0
    sm_util: float = 0.0
    bw_util: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    samples: int = 0
    source: ProfileSource = "default"


COLUMNS = ("key", "name", *(field.name for field in fields(KernelProfile) if field.name not in ("key", "name")))


def read_profiles(path: Path) -> list[KernelProfile]:
    """The rows of a profile file. Raises `NotFound`, and `InvalidInput` with the line of the first thing wrong."""
    return parse_profiles(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Raises `NotFound` or `InvalidInput`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"there is no profile file '{path}'.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"profile file '{path}' cannot be read: {error}.") from None


def parse_profiles(text: str, where: str) -> list[KernelProfile]:
    """Rows of a CSV with our columns; `where` names it in messages."""
    header, rows = table(text, where)
    unknown = [name for name in header if name not in COLUMNS]
    lacking = [name for name in NEEDED if name not in header]
    if unknown or lacking:
        wrong = f"unknown column '{unknown[0]}'" if unknown else f"the column '{lacking[0]}' is missing"
        raise InvalidInput(
            f"{where}, line 1: {wrong}; allowed are {', '.join(COLUMNS)} (or Orion's Name,Profile,Memory_footprint,SM_usage,"
            "Duration)."
        )
    return [_row(dict(zip(header, cells, strict=True)), f"{where}, line {line}") for line, cells in rows]


def table(text: str, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and each row with its line number, empty lines left out. Raises `InvalidInput` for rows of another width."""
    reader = csv.reader(io.StringIO(text))
    try:
        header = [cell.strip() for cell in next(reader, [])]
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise InvalidInput(f"{where}, line {reader.line_num}: {error}.") from None
    if not any(header):
        raise InvalidInput(f"{where} is empty: a profile file begins with a line of column names.")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InvalidInput(f"{where}, line 1: the column '{twice[0]}' stands there twice.")
    for line, cells in rows:
        if len(cells) != len(header):
            raise InvalidInput(f"{where}, line {line}: {len(cells)} values for {len(header)} columns.")
    return header, rows


def write_profiles(rows: Iterable[KernelProfile], path: Path) -> None:
    """Raises `InvalidInput` when the file cannot be written."""
    try:
        path.write_text(format_profiles(rows), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be written: {error.strerror or error}.") from None


def format_profiles(rows: Iterable[KernelProfile]) -> str:
    """The CSV text; reading it gives the same rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(name, getattr(row, name)) for name in COLUMNS])
    return out.getvalue()


def _cell(name: str, value: Any) -> str:
    if name == "key":
        return f"{value:016x}" if value else ""
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if any(value) else ""
    if isinstance(value, float):
        return repr(int(value) if value.is_integer() else value)
    return str(value)


def _row(cells: Mapping[str, str], where: str) -> KernelProfile:
    values: dict[str, Any] = {name: _value(name, text, where) for name, text in cells.items() if text}
    for name in NEEDED:
        if name not in values:
            raise InvalidInput(f"{where}: '{name}' is empty.")
    return KernelProfile(**values)


def _value(name: str, text: str, where: str) -> object:
    kind, needed = _KINDS[name]
    try:
        return kind(text)
    except ValueError:
        raise InvalidInput(f"{where}: {name} = {text!r}, but {needed} is needed.") from None


def _key(text: str) -> int:
    value = int(text, 16)
    if not 0 <= value < 1 << 64:
        raise ValueError(text)
    return value


def _triple(text: str) -> Triple:
    parts = [_count(part) for part in text.split("x")]
    if not 1 <= len(parts) <= 3 or 0 in parts:
        raise ValueError(text)
    x, y, z = (*parts, 1, 1)[:3]
    return x, y, z


def _count(text: str) -> int:
    value = float(text)
    if not value.is_integer() or not 0 <= value < 1 << 63:
        raise ValueError(text)
    return int(value)


def _amount(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(text)
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def _source(text: str) -> str:
    if text not in SOURCES:
        raise ValueError(text)
    return text


def _name(text: str) -> str:
    if not text.isprintable():  # the interposer reads line by line
        raise ValueError(text)
    return text


_COUNT: tuple[Callable[[str], object], str] = (_count, "a whole number of 0 or more")
_AMOUNT: tuple[Callable[[str], object], str] = (_amount, "a number of 0 or more")
_SHARE: tuple[Callable[[str], object], str] = (_share, "a share from 0 to 1")
_DIMENSIONS: tuple[Callable[[str], object], str] = (_triple, "a size as in 128x1x1")
_KINDS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "key": (_key, "a key of up to 16 hexadecimal digits"),
    "name": (_name, "a name without control characters"),
    "source": (_source, f"one of {', '.join(SOURCES)}"),
    **dict.fromkeys(("grid", "block"), _DIMENSIONS),
    **dict.fromkeys(("sm_util", "bw_util"), _SHARE),
    **dict.fromkeys(("waves", "bytes", "flops"), _AMOUNT),
    **dict.fromkeys(
        (
            "duration_ns",
            "registers",
            "smem_static_bytes",
            "smem_dynamic_bytes",
            "occupancy",
            "sm_blocks",
            "samples",
        ),
        _COUNT,
    ),
}


def merged(rows: Sequence[KernelProfile]) -> list[KernelProfile]:
    """Rows of the same kernel as one: means weighted by their launches, the most SMs and the oldest order."""
    same: dict[tuple[object, ...], list[KernelProfile]] = {}
    for row in rows:
        same.setdefault((row.key, row.name, row.grid, row.block, row.smem_dynamic_bytes), []).append(row)
    return [_mean(group) if len(group) > 1 else group[0] for group in same.values()]


def _mean(group: Sequence[KernelProfile]) -> KernelProfile:
    weights = [max(row.samples, 1) for row in group]
    total = sum(weights)

    def mean(name: str) -> float:
        return float(sum(getattr(row, name) * weight for row, weight in zip(group, weights, strict=True)) / total)

    first = group[0]
    return KernelProfile(
        name=first.name,
        duration_ns=round(mean("duration_ns")),
        key=first.key,
        grid=first.grid,
        block=first.block,
        registers=max(row.registers for row in group),
        smem_static_bytes=max(row.smem_static_bytes for row in group),
        smem_dynamic_bytes=first.smem_dynamic_bytes,
        occupancy=min(row.occupancy for row in group),
        waves=mean("waves"),
        sm_blocks=max(row.sm_blocks for row in group),
        sm_util=mean("sm_util"),
        bw_util=mean("bw_util"),
        bytes=mean("bytes"),
        flops=mean("flops"),
        samples=total,
        source=first.source,
    )
