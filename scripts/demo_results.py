"""What the demo's schedules are judged by: utility with fixed normalisers, best accuracy, waste; as a table and a plot."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tierline.cli.client import Client
from tierline.core.nouns import NS_PER_S
from tierline.core.status import JobStatus

CHANCE = math.log(10)  # cross-entropy of guessing among ten digits
TARGET = 0.0366  # lowest validation loss of all 24 trials when each is run to its end, alone
BEATS_CHANCE = 0.01  # utility below this is noise around chance

_ACCURACY = re.compile(rb"accuracy (\d\.\d+)")


def utility(best_loss: float | None) -> float:
    """0 at `CHANCE`, 1 at `TARGET` and below."""
    if best_loss is None or not math.isfinite(best_loss):
        return 0.0
    return min(max((CHANCE - best_loss) / (CHANCE - TARGET), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Result:
    """One schedule. Curves hold (slot-seconds offered, value); the other numbers are those at the end."""

    policy: str
    utility: float
    best_loss: float
    best_accuracy: float
    wasted_slot_s: float
    used_slot_s: float
    budget_slot_s: float
    tried: int
    utility_curve: tuple[tuple[float, float], ...]
    best_curve: tuple[tuple[float, float], ...]


@dataclass(slots=True)
class Recorder:
    """Follows a run. `_useful_s` is what each job had used when its best loss last improved."""

    policy: str
    slots: int
    budget_slot_s: float
    _best: dict[str, float] = field(default_factory=dict)
    _useful_s: dict[str, float] = field(default_factory=dict)
    _used_s: dict[str, float] = field(default_factory=dict)

    def look(self, jobs: Sequence[JobStatus]) -> None:
        for job in jobs:
            self._used_s[job.job_id] = job.attained_gpu_s
            if job.best_loss is not None and job.best_loss < self._best.get(job.job_id, math.inf):
                self._best[job.job_id] = job.best_loss
                self._useful_s[job.job_id] = job.attained_gpu_s

    def line(self) -> str:
        """How it stands, in words."""
        total = sum(utility(loss) for loss in self._best.values())
        best = min(self._best.values(), default=math.nan)
        return f"total utility {total:5.2f}, best loss {best:.3f}, {len(self._best)} of {len(self._used_s)} trials seen"

    def result(self, client: Client) -> Result:
        """Ask for all reports and logs and sum up. A job that never beat chance has wasted all it used."""
        reports = [(row.time_ns, job_id, row.loss) for job_id in self._used_s for row in client.reports(job_id)]
        reports.sort()
        began_ns = min(job.submitted_ns for job in client.jobs(all=True))
        best: dict[str, float] = {}
        total_curve, best_curve = [(0.0, 0.0)], []
        for time_ns, job_id, loss in reports:
            spent = self.slots * (time_ns - began_ns) / NS_PER_S
            if loss is None or spent > self.budget_slot_s or loss >= best.get(job_id, math.inf):
                continue
            best[job_id] = loss
            total_curve.append((spent, sum(map(utility, best.values()))))
            best_curve.append((spent, min(best.values())))
        wasted = sum(
            used - (self._useful_s.get(job_id, 0.0) if utility(best.get(job_id)) >= BEATS_CHANCE else 0.0)
            for job_id, used in self._used_s.items()
        )
        last = (self.budget_slot_s, total_curve[-1][1])
        return Result(
            policy=self.policy,
            utility=total_curve[-1][1],
            best_loss=min(best.values(), default=math.nan),
            best_accuracy=max((best_accuracy(client, job_id) for job_id in best), default=math.nan),
            wasted_slot_s=wasted,
            used_slot_s=sum(self._used_s.values()),
            budget_slot_s=self.budget_slot_s,
            tried=len(best),
            utility_curve=(*total_curve, last),
            best_curve=(*best_curve, (self.budget_slot_s, min(best.values(), default=math.nan))),
        )


def best_accuracy(client: Client, job_id: str) -> float:
    """The highest accuracy that the job printed; reports carry the metric that is judged, here the loss, alone."""
    found = [float(match[1]) for chunk in chunks(client, job_id) for match in _ACCURACY.finditer(chunk)]
    return max(found, default=0.0)


def chunks(client: Client, job_id: str) -> list[bytes]:
    offset, read = 0, []
    while data := (chunk := client.logs(job_id, offset)).data:
        read.append(data)
        offset = chunk.next_offset
    return [b"".join(read)]


def write_table(results: Sequence[Result], console: Console) -> None:
    rows = {
        "total utility": [f"{r.utility:.2f}" for r in results],
        "best accuracy": [f"{100 * r.best_accuracy:.1f} %" for r in results],
        "best validation loss": [f"{r.best_loss:.4f}" for r in results],
        "trials that got to report": [str(r.tried) for r in results],
        "wasted slot-seconds": [f"{r.wasted_slot_s:.1f}" for r in results],
        "used slot-seconds": [f"{r.used_slot_s:.1f} of {r.budget_slot_s:.0f}" for r in results],
    }
    table = Table(title="The same sweep, the same slot-seconds", title_justify="left")
    table.add_column("")
    for result in results:
        table.add_column(result.policy, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print()
    console.print(table)
    console.print(
        f"Utility of a trial: 0 at chance (loss {CHANCE:.3f}), 1 at {TARGET}, the lowest that any gets when run "
        "to its end. Wasted: after a trial's last improvement, and all of a trial that never beat chance."
    )


def write_plot(results: Sequence[Result], path: Path) -> None:
    """Two panels over the slot-seconds offered: total utility, and the best validation loss of the sweep."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for result in results:
        for axes, curve in ((left, result.utility_curve), (right, result.best_curve)):
            axes.step(*zip(*curve, strict=True), where="post", label=result.policy, linewidth=1.8)
    left.set(title="Total utility of the sweep", ylabel="sum over trials (0 chance … 1 best)", ylim=(0, None))
    right.set(
        title="Best of the sweep",
        ylabel="lowest validation loss so far (nats)",
        yscale="log",
        ylim=(None, 1.1 * CHANCE),
    )
    for axes in (left, right):
        axes.set(xlabel="slot-seconds", xlim=(0, results[0].budget_slot_s))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
