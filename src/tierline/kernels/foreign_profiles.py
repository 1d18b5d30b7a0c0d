"""Profiles of others, read into ours: Orion's five columns, Nsight Compute's CSV, and what a region has learnt.

Orion (EuroSys'24) writes `Name,Profile,Memory_footprint,SM_usage,Duration`, one line an operation in program order, and
matches them by their place. Here they are keyed by name: lines of one name become one row with their mean duration, so a
program that changes its order keeps its profiles. `Profile` is 1 for compute-bound and 0 for memory-bound, which Orion says
from 60 % of a peak on; it gives no utilisation, so that 60 % stands for the one it is bound by and `OTHER` for the other one.
That keeps two operations of one class apart and lets different ones meet, as Orion does. -1 (unknown) stays unknown.

Nsight Compute: `ncu --csv --page raw --print-kernel-base mangled --metrics METRICS` (`NCU_METRICS`), with the mangled names,
since the driver knows no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tierline.core.errors import InvalidInput
from tierline.kernels.profile import KernelProfile, ProfileSource, Triple, merged, parse_profiles, read_text, table
from tierline.kernels.region import KernelSeen, RegionSeen

ORION_COLUMNS = ("Name", "Profile", "Memory_footprint", "SM_usage", "Duration")
BOUND = 0.6
OTHER = 0.3
NCU_METRICS: Mapping[str, str] = {
    "duration_ns": "gpu__time_duration.sum",
    "sm_util": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "bw_util": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "bytes": "dram__bytes.sum",
    "registers": "launch__registers_per_thread",
    "smem_static_bytes": "launch__shared_mem_per_block_static",
    "smem_dynamic_bytes": "launch__shared_mem_per_block_dynamic",
    "waves": "launch__waves_per_multiprocessor",
}
NCU_LIMITS = tuple(f"launch__occupancy_limit_{what}" for what in ("blocks", "registers", "shared_mem", "warps"))
_NCU_NEEDED = ("Kernel Name", "Grid Size", "Block Size", NCU_METRICS["duration_ns"])
_UNITS = {"nsecond": 1, "ns": 1, "usecond": 1e3, "us": 1e3, "msecond": 1e6, "ms": 1e6, "second": 1e9, "s": 1e9}
_PREFIXES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_BYTES = re.compile(r"(Ki?|Mi?|Gi?|T?)byte(?:/block)?")
# The core's words for where a demand comes from -> ours in a file.
_SOURCES: Mapping[str, ProfileSource] = {"counters": "ncu", "event": "event", "roofline": "roofline"}


def import_profiles(path: Path) -> list[KernelProfile]:
    """A profile file of ours, of Orion or of Nsight Compute; its header tells which. Raises `NotFound`, `InvalidInput`."""
    text = read_text(path)
    kind = kind_of(text)
    if kind == "orion":
        return parse_orion(text, str(path))
    if kind == "ncu":
        return parse_ncu(text, str(path))
    return parse_profiles(text, str(path))


def kind_of(text: str) -> str:
    """`orion`, `ncu` or `tierline`, by the header."""
    if '"Kernel Name"' in text or "Kernel Name," in text:
        return "ncu"
    names = {name.strip() for name in text.partition("\n")[0].split(",")}
    return "orion" if names & (set(ORION_COLUMNS) - {"Name"}) else "tierline"


def parse_orion(text: str, where: str) -> list[KernelProfile]:
    """Rows keyed by name; `where` names the text in messages."""
    header, rows = table(text, where)
    if sorted(header) != sorted(ORION_COLUMNS):
        raise InvalidInput(f"{where}, line 1: an Orion profile has the columns {','.join(ORION_COLUMNS)}, this one has "
                           f"{','.join(header)}.")  # fmt: skip
    found = []
    for line, cells in rows:
        row, at = dict(zip(header, cells, strict=True)), f"{where}, line {line}"
        if row["Profile"] not in ("-1", "0", "1"):
            raise InvalidInput(
                f"{at}: Profile = '{row['Profile']}', but 1 (compute), 0 (memory) or -1 (unknown) is needed."
            )
        if not row["Name"]:
            raise InvalidInput(f"{at}: 'Name' is empty.")
        sm_util, bw_util = {"1": (BOUND, OTHER), "0": (OTHER, BOUND), "-1": (0.0, 0.0)}[row["Profile"]]
        sms, duration_ns = (_number(row[name], name, at) for name in ("SM_usage", "Duration"))
        found.append(
            KernelProfile(
                row["Name"], round(duration_ns), sm_blocks=round(sms), sm_util=sm_util, bw_util=bw_util, samples=1,
                source="orion",
            )
        )  # fmt: skip
    return merged(found)


def parse_ncu(text: str, where: str) -> list[KernelProfile]:
    """Rows keyed by name, grid, block and shared memory, launches of the same kernel merged."""
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if "Kernel Name" in line)  # above it ncu reports its progress
    header, rows = table("\n".join(lines[begin:]), where)
    lacking = [name for name in _NCU_NEEDED if name not in header]
    if lacking:
        raise InvalidInput(
            f"{where}, line {begin + 1}: the column '{lacking[0]}' is missing; run ncu with --csv --page raw --metrics "
            f"{','.join([*NCU_METRICS.values(), *NCU_LIMITS])}."
        )
    if not rows:
        raise InvalidInput(f"{where}: there is no kernel in it.")
    units = dict(zip(header, rows[0][1], strict=True))
    return merged(
        [
            _ncu_row(dict(zip(header, cells, strict=True)), units, f"{where}, line {begin + line}")
            for line, cells in rows[1:]
        ]
    )


def _ncu_row(row: Mapping[str, str], units: Mapping[str, str], where: str) -> KernelProfile:
    def metric(name: str) -> float:
        """In ns, bytes or shares; 0 where it was not measured."""
        text = row.get(name, "")
        if text in ("", "n/a"):
            return 0.0
        return _number(text.replace(",", ""), name, where) * _scale(units[name], name, where)

    limits = [limit for limit in map(metric, NCU_LIMITS) if limit > 0]
    measured = {name: metric(column) for name, column in NCU_METRICS.items()}
    return KernelProfile(
        row["Kernel Name"],
        round(measured["duration_ns"]),
        grid=_dimensions(row["Grid Size"], where),
        block=_dimensions(row["Block Size"], where),
        registers=round(measured["registers"]),
        smem_static_bytes=round(measured["smem_static_bytes"]),
        smem_dynamic_bytes=round(measured["smem_dynamic_bytes"]),
        occupancy=round(min(limits, default=0)),
        waves=measured["waves"],
        sm_util=min(measured["sm_util"], 1.0),
        bw_util=min(measured["bw_util"], 1.0),
        bytes=measured["bytes"],
        samples=1,
        source="ncu",
    )


def _scale(unit: str, name: str, where: str) -> float:
    if unit == "%":
        return 0.01
    if unit in _UNITS:
        return _UNITS[unit]
    if match := _BYTES.fullmatch(unit):
        return _PREFIXES[match[1]]
    if unit in ("", "block", "register/thread", "warp"):
        return 1.0
    raise InvalidInput(f"{where}: the unit '{unit}' of {name} is not known; run ncu with --print-units base.")


def _dimensions(text: str, where: str) -> Triple:
    """Of `(128, 1, 1)`."""
    match = re.fullmatch(r"\(?\s*(\d+),\s*(\d+),\s*(\d+)\s*\)?", text)
    if match is None:
        raise InvalidInput(f"{where}: '{text}' are no dimensions; as in (128, 1, 1) they are needed.")
    return int(match[1]), int(match[2]), int(match[3])


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
        if value >= 0:
            return value
    except ValueError:
        pass
    raise InvalidInput(f"{where}: {name} = '{text}', but a number of 0 or more is needed.")


def learned_profiles(region: RegionSeen) -> list[KernelProfile]:
    """What the programs of a region were found to use, the kernels with the most time first; unknown ones are left out."""
    return [_learned(kernel, region.sms) for kernel in region.by_time if kernel.source in (*_SOURCES, "assumed")]


def _learned(kernel: KernelSeen, sms: int) -> KernelProfile:
    blocks = kernel.grid[0] * kernel.grid[1] * kernel.grid[2]
    return KernelProfile(
        kernel.name,
        kernel.duration_ns,
        key=kernel.key,
        grid=kernel.grid,
        block=kernel.block,
        registers=kernel.registers,
        smem_static_bytes=kernel.smem_static_bytes,
        smem_dynamic_bytes=kernel.smem_dynamic_bytes,
        occupancy=kernel.occupancy,
        waves=round(blocks / (kernel.occupancy * sms), 4) if kernel.occupancy and sms else 0.0,
        sm_blocks=kernel.sm_blocks,
        sm_util=min(kernel.sm_util, 1.0),
        bw_util=min(kernel.bw_util, 1.0),
        bytes=kernel.bytes,
        flops=kernel.flops,
        samples=max(kernel.samples, 1),
        source=_SOURCES.get(kernel.source, "default"),
    )


def bound_class(row: KernelProfile) -> str:
    """compute, memory or unknown: the larger of both utilisations."""
    if row.sm_util == row.bw_util:
        return "unknown"
    return "compute" if row.sm_util > row.bw_util else "memory"
