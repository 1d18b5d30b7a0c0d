"""What a simulated run was worth: fixed scales from the full curves, and the backend's own record of who ran when.

Every figure is an exact integral over the record; nothing is asked of the scheduler. The horizon H is the last arrival
× 1.1. Definitions (docs: concepts/utility):

- utility: Σ over jobs at H of u(m) = clip((B − m)/(B − F), 0, 1), m the running minimum of the raw finite losses;
  u is linear between two reports, 0 before the first start.
- utility_auc: the mean of that sum over [first arrival, H].
- best_regret: mean over sweeps of the mean over [the sweep's first arrival, H] of clip((best reported − F)/(B − F), 0, 1).
  Its clock is the cluster's GPU-seconds, which run evenly with time.
- wasted_gpu_s, up to H: GPU-seconds after the last improvement of jobs that their user stops, that fail or diverge, and
  all GPU-seconds of jobs that never beat chance. What a job will do decides, not how far this schedule let it go.
- idle_gpu_s, whole run: integral of min(free devices, demand of waiting jobs), counting jobs that would fit.
- A device shared by two jobs is charged to each at half, so GPU-seconds add up to those of the devices. The bound is that
  of exclusive devices: with sharing `of_bound` may exceed 1.
- mean_jct_s, makespan_s, preemptions: whole run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tierline.core.nouns import NS_PER_S
from tierline.core.views import Floats
from tierline.perf.truth import Record, Segment, Truth, Workload, until_end, utility_curve


@dataclass(frozen=True, slots=True)
class SharingFigures:
    """What sharing did in one run. A pair is *bad* when its true speeds add up to 1 or less: taking turns would do as well.
    `packs` pairs were made, `bad` of them bad; `unpacks` were ended by asking the guest to leave, `bad_unpacks` of those
    bad. `shared_gpu_s`, `bad_gpu_s`: GPU-seconds of devices under a pair, under a bad one; `mean_bad_s`, `longest_bad_s`:
    how long bad pairs lasted; `mean_speeds`: mean over time of the true speeds of a pair added up."""

    packs: int
    bad: int
    unpacks: int
    bad_unpacks: int
    shared_gpu_s: float
    bad_gpu_s: float
    mean_bad_s: float
    longest_bad_s: float
    mean_speeds: float


def sharing_figures(record: Record) -> SharingFigures:
    pairs = [(each, (each.end_ns - each.start_ns) / NS_PER_S) for each in record.shared]
    bad = [(each, seconds) for each, seconds in pairs if each.host_speed + each.guest_speed <= 1.0]
    unpacked = [each for each, _ in pairs if each.guest_left and each.end == "preempted"]
    shared_gpu_s = sum(each.gpus * seconds for each, seconds in pairs)
    both = sum((each.host_speed + each.guest_speed) * each.gpus * seconds for each, seconds in pairs)
    return SharingFigures(
        packs=len(pairs),
        bad=len(bad),
        unpacks=len(unpacked),
        bad_unpacks=sum(each.host_speed + each.guest_speed <= 1.0 for each in unpacked),
        shared_gpu_s=shared_gpu_s,
        bad_gpu_s=sum(each.gpus * seconds for each, seconds in bad),
        mean_bad_s=sum(seconds for _, seconds in bad) / len(bad) if bad else 0.0,
        longest_bad_s=max((seconds for _, seconds in bad), default=0.0),
        mean_speeds=both / shared_gpu_s if shared_gpu_s else math.nan,
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """Figures of one run. `of_bound` is NaN when no bound was computed; `unfinished` jobs had not ended."""

    utility: float
    utility_auc: float
    of_bound: float
    best_regret: float
    mean_jct_s: float
    makespan_s: float
    wasted_gpu_s: float
    idle_gpu_s: float
    preemptions: int
    unfinished: int


def judge(workload: Workload, record: Record, bound: float = math.nan) -> Judgement:
    """Judge a run of `workload`; `bound` is the most utility that any schedule could have at the horizon."""
    horizon = workload.horizon_ns
    by_row: dict[int, list[Segment]] = defaultdict(list)
    for segment in record.segments:
        by_row[segment.row].append(segment)
    utility = area = wasted_ns = 0.0
    for row, segments in by_row.items():
        entry = workload.entries[row]
        scale = workload.normaliser_of[entry.job.sweep]
        at_end, integral = utility_and_area(*utility_curve(entry.truth, scale), segments, horizon)
        utility += at_end
        area += integral
        from_share = waste_from(entry.truth, *until_end(entry.truth, scale))
        wasted_ns += sum(_gpu_ns_after(segment, from_share, horizon) for segment in segments)
    ended = [(end, entry.time_ns) for end, entry in zip(record.end_ns, workload.entries, strict=True) if end >= 0]
    return Judgement(
        utility=utility,
        utility_auc=area / max(horizon - workload.first_ns, 1),
        of_bound=utility / bound if bound > 0 else math.nan,
        best_regret=best_regret(workload, by_row),
        mean_jct_s=sum(end - start for end, start in ended) / NS_PER_S / len(ended) if ended else math.nan,
        makespan_s=(max(end for end, _ in ended) - workload.first_ns) / NS_PER_S if ended else math.nan,
        wasted_gpu_s=wasted_ns / NS_PER_S,
        idle_gpu_s=idle_gpu_ns(workload, record) / NS_PER_S,
        preemptions=sum(segment.outcome == "preempted" for segment in record.segments),
        unfinished=len(record.end_ns) - len(ended),
    )


def utility_and_area(shares: Floats, utility: Floats, segments: list[Segment], horizon: int) -> tuple[float, float]:
    """One job: (utility at the horizon, ∫ utility dt in ns up to it), exact for a curve linear between its points.

    Work lost with a node takes no utility back: the best model reported stays the user's.
    """
    primitive = np.concatenate([[0.0], np.cumsum(np.diff(shares) * (utility[1:] + utility[:-1]) / 2.0)])

    def below(share: float) -> float:
        """∫ utility over [0, share]."""
        index = min(int(np.searchsorted(shares, share, side="right")) - 1, len(shares) - 2)
        width = share - shares[index]
        height = utility[index] + float(np.interp(share, shares, utility))
        return float(primitive[index] + width * height / 2.0)

    area = held = 0.0
    peak, cursor = 0.0, horizon
    for segment in segments:
        work, stop = min(segment.work_ns, horizon), min(segment.stop_ns, horizon)
        if segment.work_ns >= horizon:
            break
        area += held * max(work - cursor, 0)
        cursor = stop
        reached = _share_at(segment, stop)
        if reached > peak and segment.share_to > segment.share_from:
            ns_per_share = (segment.stop_ns - segment.work_ns) / (segment.share_to - segment.share_from)
            begin = max(peak, segment.share_from)
            area += held * (begin - segment.share_from) * ns_per_share  # work done once more after a loss
            area += (below(reached) - below(begin)) * ns_per_share
            peak = reached
        else:
            area += held * (stop - work)
        held = float(np.interp(peak, shares, utility))
    return held, area + held * max(horizon - cursor, 0)


def waste_from(truth: Truth, shares: Floats, utility: Floats) -> float:
    """The share of its work from which on all a job gets is waste: −1 = from the start, inf = never.

    `shares`, `utility`: its curve up to its end; the last knot, at the end itself, is no report unless it is a point.
    """
    reported = utility[np.isin(shares, truth.shares)]
    if reported[-1] <= 0.0:
        return -1.0
    if truth.end == "completed" and not truth.diverges:
        return math.inf
    return float(shares[int(np.argmax(reported >= reported[-1]))])


def best_regret(workload: Workload, by_row: dict[int, list[Segment]]) -> float:
    """Mean over sweeps that hold anything better than chance; 0.0 when none does."""
    horizon = workload.horizon_ns
    found: dict[str, list[tuple[Floats, Floats]]] = defaultdict(list)
    first: dict[str, int] = {}
    for row, entry in enumerate(workload.entries):
        first.setdefault(entry.job.sweep, entry.time_ns)
        shares, utility = utility_curve(entry.truth, workload.normaliser_of[entry.job.sweep])
        for segment in by_row.get(row, ()):
            low, high = np.searchsorted(shares, [segment.share_from - 1e-12, segment.share_to + 1e-12])
            span = segment.share_to - segment.share_from
            rate = (segment.stop_ns - segment.work_ns) / span if span > 0 else 0.0
            times = segment.work_ns + (shares[low:high] - segment.share_from) * rate
            found[entry.job.sweep].append((times, utility[low:high]))
    regrets = []
    for sweep, scale in workload.normaliser_of.items():
        begin = first.get(sweep, horizon)
        if scale.chance <= scale.best or begin >= horizon:
            continue
        pieces = found[sweep]
        times = np.concatenate([[float(begin)], *(t for t, _ in pieces)])
        values = np.concatenate([[0.0], *(u for _, u in pieces)])
        order = np.argsort(times, kind="stable")
        best = np.maximum.accumulate(values[order])
        edges = np.minimum(np.append(times[order], horizon), horizon)
        regrets.append(float(((1.0 - best) * np.diff(edges)).sum()) / (horizon - begin))
    return sum(regrets) / len(regrets) if regrets else 0.0


def idle_gpu_ns(workload: Workload, record: Record) -> float:
    """∫ min(free devices that a waiting job fits on, demand of the jobs that fit) dt, in GPU-ns, over the whole run.

    A job fits when one GPU type that it may use has `min_gpus` free devices.
    """
    changes: list[tuple[int, str, float]] = [(at, gpu_type, step) for at, gpu_type, step in record.capacity]
    waits: list[tuple[int, tuple[int, tuple[str, ...]], int]] = []
    kinds = [(entry.job.min_gpus, entry.job.gpu_types) for entry in workload.entries]
    since = {row: entry.time_ns for row, entry in enumerate(workload.entries)}
    over = max((segment.end_ns for segment in record.segments), default=0)
    for segment in record.segments:
        changes += [
            (segment.start_ns, segment.gpu_type, -segment.gpus * segment.charge),
            (segment.end_ns, segment.gpu_type, segment.gpus * segment.charge),
        ]
        waits += [(since[segment.row], kinds[segment.row], 1), (segment.start_ns, kinds[segment.row], -1)]
        since[segment.row] = segment.end_ns
    for row, from_ns in since.items():
        until = record.end_ns[row] if record.end_ns[row] >= 0 else over
        if until > from_ns:
            waits += [(from_ns, kinds[row], 1), (until, kinds[row], -1)]
    changes.sort(key=lambda change: change[0])
    waits.sort(key=lambda change: change[0])
    free: dict[str, float] = defaultdict(float)
    waiting: dict[tuple[int, tuple[str, ...]], int] = defaultdict(int)
    times = sorted({at for at, *_ in changes} | {at for at, *_ in waits})
    total, c, w = 0.0, 0, 0
    for now, after in pairwise(times):
        while c < len(changes) and changes[c][0] <= now:
            free[changes[c][1]] += changes[c][2]
            c += 1
        while w < len(waits) and waits[w][0] <= now:
            waiting[waits[w][1]] += waits[w][2]
            w += 1
        if any(n > 0 for n in free.values()):
            total += _usable(free, waiting) * (after - now)
    return total


def _usable(free: dict[str, float], waiting: dict[tuple[int, tuple[str, ...]], int]) -> float:
    fitting: set[str] = set()
    demand = 0
    for (size, types), count in waiting.items():
        if count > 0:
            on = [t for t, n in free.items() if n >= size and (not types or t in types)]
            fitting.update(on)
            demand += size * count if on else 0
    return min(sum(free[t] for t in fitting), demand)


def _share_at(segment: Segment, at_ns: int) -> float:
    if at_ns >= segment.stop_ns:
        return segment.share_to
    done = (at_ns - segment.work_ns) / max(segment.stop_ns - segment.work_ns, 1)
    return segment.share_from + max(done, 0.0) * (segment.share_to - segment.share_from)


def _gpu_ns_after(segment: Segment, share: float, horizon: int) -> float:
    """GPU-ns that the segment held its devices after its job had reached `share`, up to the horizon."""
    if share < 0 or segment.share_from > share:
        begin = float(segment.start_ns)
    elif segment.share_to <= share:
        return 0.0
    else:
        done = (share - segment.share_from) / (segment.share_to - segment.share_from)
        begin = segment.work_ns + done * (segment.stop_ns - segment.work_ns)
    return segment.charge * segment.gpus * max(min(segment.end_ns, horizon) - begin, 0.0)
