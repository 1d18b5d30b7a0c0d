"""Random workloads against the limits: the true sums of the simulated device in `strict` mode.

With exact profiles no sum may be over its limit at any instant at which two or more clients run; the control run, a gate
that always admits, must break that. With profiles off by ±20 % the largest excess is stated, and how it falls while launches
go by. Longer workloads show the longest wait against its bound. `--json FILE` writes all of it. Repeat with:

    python benchmarks/kernel_limits.py --json docs/results/kernel_limits.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tierline.backends.kernels.limits import Draw, Group, run_group
from tierline.backends.kernels.pairs import truth_hash
from tierline.core.errors import TierlineError

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Study:
    name: str
    draw: Draw
    workloads: int
    limits_hold: bool | None  # what must come out; None: it is only told


def studies(workloads: int) -> Iterator[Study]:
    few = max(1, workloads // 20)
    yield Study("strict, exact profiles, every end told at once", Draw(), workloads, True)
    yield Study("strict, exact profiles, ends told by the poller", Draw(exact_ends=False), workloads, True)
    yield Study("control: a gate that always admits", Draw(policy="free"), few, False)
    yield Study("strict, profiles off by up to 20 %", Draw(profiles="noisy:0.2", exact_ends=False), workloads, None)
    yield Study(
        "strict, profiles off by up to 20 %, limits lowered by as much",
        Draw(profiles="noisy:0.2", exact_ends=False, margin=0.2),
        few,
        True,
    )
    yield Study("strict, kernels unknown, learned on the way", Draw(profiles="none", exact_ends=False), few, None)
    yield Study("latency, exact profiles", Draw(mode="latency", exact_ends=False), few, None)
    long, rare = Draw(exact_ends=False, duration_ns=400 * MS), max(1, workloads // 100)
    yield Study("strict, exact profiles, 0.4 s each: waits", long, rare, True)
    yield Study(
        "strict, profiles off by up to 20 %, 0.4 s each: correction", replace(long, profiles="noisy:0.2"), rare, None
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", default="", metavar="FILE")
    given = parser.parse_args()
    results, wrong = [], 0
    try:
        with ProcessPoolExecutor(given.workers) as pool:
            for study in studies(given.workloads):
                begun = time.perf_counter()
                group = Group()
                chunk = 100 if study.draw.duration_ns < 100 * MS else 5
                starts = range(0, study.workloads, chunk)
                counts = [min(chunk, study.workloads - start) for start in starts]
                for part in pool.map(partial(run_group, study.draw), starts, counts):
                    group = group.joined(part)
                tell(study.name, group, time.perf_counter() - begun)
                held = group.over_limit == 0 and group.stuck == 0
                if study.limits_hold is not None and held != study.limits_hold:
                    wrong += 1
                    print("  NOT AS IT MUST BE")
                results.append({"study": study.name, "draw": asdict(study.draw), **group.as_json()})
        found = {"simulated_device": "h200", "truth_sha256": truth_hash(), "studies": results}
    except TierlineError as error:
        print(f"kernel_limits: {error}", file=sys.stderr)
        return 2
    if given.json:
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def tell(name: str, group: Group, seconds: float) -> None:
    print(f"{name} (simulated device, {seconds:.0f} s)")
    print(
        f"  {group.workloads} workloads, {group.launches:,} launches, clients together for {group.shared_share:.0%} of the "
        f"busy time; over a limit in {group.over_limit}, at most by {group.excess_most:.4f} of the device"
    )
    if group.over_limit:
        print(
            f"  over it for {group.excess_share:.3%} of the time together; size and share of time by launches so far: "
            + ", ".join(
                f"{window.from_launch}-{window.to_launch}: {window.most:.3f} {window.share:.2%}"
                for window in group.windows
            )
        )
    print(
        f"  longest wait {group.longest_wait_ns / MS:.2f} ms, forced {group.forced}, stuck {group.stuck}"
        + (f"; worst seeds {group.worst_seeds}" if group.worst_seeds else "")
    )


if __name__ == "__main__":
    sys.exit(main())
