"""A simulated cluster: carries the scheduler's actions out on virtual time.

Nothing ticks. The speed of an attempt changes only with those that share its devices, so until then its reports and its
end are known; they wait in heaps and are made into events when the clock asks. Reports carry their exact times and are
handed over in one batch just before the next event of anybody, so the scheduler never decides on old news. Cost: O(log n)
per event.

What runs here: restart cost on resume (devices held, no progress), checkpoint time on preemption, slow nodes
(stragglers), loss and return of nodes with the work since the last checkpoint lost, stops by users at a hidden point,
failures, several GPU types, elastic jobs, two jobs on one device: each at the true speed of its pair
(`Workload.pair_speed`, `UNKNOWN_PAIR` where it has none), and what the kernel tier would tell of it: `SlowdownSeen` for both
after a window, then after windows of twice the length each, with noise.

Over 400 lines: an attempt's start, reports, sharing, exit and loss share one set of heaps, whose invariants are read
together: an entry is valid only while it says what its attempt says (`end_ns`, `stop_at_ns`, `report_seq`).
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tierline.clock import Order, SimClock
from tierline.core.actions import Action, PreemptJob, RecordEnd, StartJob, StopJob
from tierline.core.errors import InvalidInput
from tierline.core.events import (
    Event,
    JobExited,
    JobStarted,
    JobSubmitted,
    NodeJoined,
    NodeLost,
    PairsMeasured,
    ProgressReported,
    SlowdownSeen,
    StopRequested,
    SweepDeclared,
)
from tierline.core.nouns import NS_PER_S, Device, Job, Node, Outcome, PairSpeed, Report
from tierline.perf.speedup import speedup_curve
from tierline.perf.truth import Arrival, Record, Segment, SharedTime, Truth, Workload

NEVER = 1 << 62
UNKNOWN_PAIR = 0.5  # true speed of each where the truth has no such pair: they take turns
STALLED = 1e-3  # least true speed: two that do not fit together stand still, but time must end


@dataclass(frozen=True, slots=True)
class SimOptions:
    """The simulated cluster. `restart_ns`: devices held without progress when a job resumes; `checkpoint_ns`: how long
    a preempted job still holds them. With `straggler_share` of the nodes (chosen by `seed`) running `straggler_slowdown`
    times slower. `node_loss_per_day`: expected losses per node; a lost node returns after `repair_ns`, and its jobs fall
    back to their last checkpoint, made every `checkpoint_interval_ns` of work (0 = continuously).

    `measured`: pair speeds that are told before the first job (they need not be true). `window_ns`: how long two jobs share
    before their slowdown is told (0 = never), with relative noise of standard deviation `noise`."""

    nodes: tuple[Node, ...]
    restart_ns: int = 30 * NS_PER_S
    checkpoint_ns: int = 0
    straggler_share: float = 0.0
    straggler_slowdown: float = 2.0
    node_loss_per_day: float = 0.0
    repair_ns: int = 1800 * NS_PER_S
    checkpoint_interval_ns: int = 600 * NS_PER_S
    seed: int = 0
    measured: tuple[PairSpeed, ...] = ()
    window_ns: int = 60 * NS_PER_S
    noise: float = 0.05


def uniform_nodes(gpus: int, gpus_per_node: int = 8, gpu_type: str = "gpu", prefix: str = "node") -> tuple[Node, ...]:
    """`gpus` devices on nodes of `gpus_per_node` (the last may have fewer)."""
    if gpus < 1 or gpus_per_node < 1:
        raise InvalidInput(f"--gpus {gpus} and --gpus-per-node {gpus_per_node} must both be at least 1.")
    return tuple(
        Node(
            f"{prefix}{number:03d}",
            tuple(
                Device(f"{prefix}{number:03d}/{index}", gpu_type)
                for index in range(min(gpus_per_node, gpus - number * gpus_per_node))
            ),
        )
        for number in range(-(-gpus // gpus_per_node))
    )


@dataclass(slots=True)
class _Course:
    """A job's hidden course while it lives: where its progress stands and which point is reported next."""

    row: int
    job: Job
    truth: Truth
    shares: list[float]
    speed_at: np.ndarray[tuple[int], np.dtype[np.float64]] | None
    share: float = 0.0
    next_point: int = 0
    attempts: int = 0
    given_up: bool = False  # the scheduler counts it as over
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Attempt:
    """An attempt on its devices. From `work_ns` on it does `rate` of the job's work (share) per ns, until `stop_ns`; all
    five change when somebody joins or leaves its devices, and `past` keeps what they were (work_ns, share_from, rate)."""

    course: _Course
    number: int
    device_ids: tuple[str, ...]
    nodes: frozenset[str]
    gpu_type: str
    start_ns: int
    work_ns: int
    share_from: float
    rate_alone: float
    rate: float
    speed: float = 1.0  # beside those on its devices, relative to alone
    charge: float = 1.0
    stop_at_ns: int = NEVER  # when its user will stop it
    report_seq: int = 0  # of its next report
    past: list[tuple[int, float, float]] = field(default_factory=list)
    end_ns: int = NEVER  # when it leaves its devices, once that is known
    stop_ns: int = NEVER  # when it stops making progress
    outcome: Outcome = "completed"
    reason: str = ""

    def time_of(self, share: float) -> int:
        if share <= self.share_from:
            return self.work_ns
        return self.work_ns + int((share - self.share_from) / self.rate + 0.5)

    @property
    def first_work_ns(self) -> int:
        return self.past[0][0] if self.past else self.work_ns

    def share_at(self, at_ns: int) -> float:
        work_ns, share_from, rate = self.work_ns, self.share_from, self.rate
        for earlier in reversed(self.past):
            if at_ns >= work_ns:
                break
            work_ns, share_from, rate = earlier
        if at_ns <= work_ns:
            return share_from
        return min(share_from + (at_ns - work_ns) * rate, self.course.truth.end_fraction)


@dataclass(slots=True, eq=False)
class _Pair:
    """Two attempts on `gpus` devices together since `start_ns`; the next slowdown is told after `window_ns`."""

    host: _Attempt
    guest: _Attempt
    gpus: int
    start_ns: int
    window_ns: int
    over: bool = False


class SimBackend:
    """Implements `Backend` over a `SimClock`, and is that clock's event source. `record()` tells afterwards who ran
    when, independently of the scheduler's own books."""

    def __init__(self, clock: SimClock, workload: Workload, options: SimOptions) -> None:
        self._clock = clock
        self._options = options
        self._workload = workload
        self._rng = random.Random(f"sim {options.seed}")
        self._node_of: dict[str, str] = {}
        self._type_of: dict[str, str] = {}
        for node in options.nodes:
            for device in node.devices:
                self._node_of[device.device_id] = node.name
                self._type_of[device.device_id] = device.gpu_type
        slow = self._rng.sample(range(len(options.nodes)), round(options.straggler_share * len(options.nodes)))
        self._slowdown = {options.nodes[i].name: options.straggler_slowdown for i in slow}
        self._present = {node.name for node in options.nodes}
        self._running: dict[str, _Attempt] = {}
        self._courses: dict[str, _Course] = {}
        self._arrived = 0
        self._live = 0
        self._due: list[tuple[int, int, int, _Attempt]] = []  # (time, order, seq): the attempt's next turn
        self._reports: list[tuple[int, int, _Attempt]] = []  # (time, seq): the attempt's next report
        self._faults: list[tuple[int, int, str]] = []  # (time, 0 = lost / 1 = back, node)
        self._users: dict[str, list[_Attempt]] = {}  # device -> who is on it, the first one first
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._windows: list[tuple[int, int, _Pair]] = []  # (time, seq): a slowdown to be told
        self._noise = random.Random(f"seen {options.seed}")
        self._shared: list[SharedTime] = []
        self._seq = 0
        self._events = 0
        self._segments: list[Segment] = []
        self._ended_ns = [-1] * len(workload.entries)
        self._capacity = [(clock.now_ns(), device.gpu_type, 1) for node in options.nodes for device in node.devices]
        for node in options.nodes:
            clock.post(NodeJoined(node))
        for sweep in workload.sweeps:
            clock.post(SweepDeclared(sweep))
        if options.measured:
            clock.post(PairsMeasured(options.measured))
        if options.node_loss_per_day > 0:
            for node in options.nodes:
                self._plan_loss(node.name, clock.now_ns())
        clock.attach(self)

    # -- actions ----------------------------------------------------------------------------------------------------

    def execute(self, action: Action) -> None:
        now = self._clock.now_ns()
        match action:
            case StartJob():
                self._start(action, now)
            case PreemptJob():
                self._leave(action.job_id, action.attempt, now, self._options.checkpoint_ns, "preempted", action.reason)
            case StopJob():
                self._leave(action.job_id, action.attempt, now, 0, "stopped", action.reason)
            case RecordEnd():
                self._end_waiting(action.job_id, now)
            case _:
                pass  # timers are the driver's, refusals are records only

    def close(self) -> None:
        self._due.clear()
        self._reports.clear()
        self._faults.clear()
        self._windows.clear()

    def _end_waiting(self, job_id: str, now: int) -> None:
        """A job is over without an exit of its own: stopped while it waited, or lost once too often."""
        course = self._courses[job_id]
        course.given_up = True
        if not course.ended and job_id not in self._running:
            self._end(course, now)

    def _end(self, course: _Course, now: int) -> None:
        course.ended = True
        self._live -= 1
        self._ended_ns[course.row] = now

    def _start(self, action: StartJob, now: int) -> None:
        course = self._courses[action.job_id]
        running = self._running.get(action.job_id)
        if running is not None or course.ended or action.attempt <= course.attempts:
            return  # an attempt is started at most once
        course.attempts = action.attempt
        nodes = frozenset(self._node_of[device_id] for device_id in action.device_ids)
        resumes = course.attempts > 1
        rate = self._speed(course, action.device_ids, nodes) / (course.truth.duration_s * 1e9)
        attempt = _Attempt(
            course=course,
            number=action.attempt,
            device_ids=action.device_ids,
            nodes=nodes,
            gpu_type=self._type_of[action.device_ids[0]],
            start_ns=now,
            work_ns=now + (self._options.restart_ns if resumes else 0),
            share_from=course.share,
            rate_alone=rate,
            rate=rate,
        )
        self._running[action.job_id] = attempt
        partners = self._join(attempt, now)
        if not nodes <= self._present:  # started on a node that is already gone
            self._finish_at(attempt, now, now, "lost", "its node is gone")
            return
        self._clock.post(JobStarted(action.job_id, action.attempt))
        self._plan_end(attempt)
        self._plan_report(attempt)
        for each in (attempt, *partners) if partners else ():
            self._change_speed(each, now)

    def _plan_end(self, attempt: _Attempt) -> None:
        truth = attempt.course.truth
        end_ns = attempt.time_of(truth.end_fraction)
        if truth.end == "stopped":
            attempt.stop_at_ns = end_ns
            self._seq += 1
            heapq.heappush(self._due, (end_ns, Order.FACT, self._seq, attempt))
        elif truth.end == "failed":
            self._finish_at(attempt, end_ns, end_ns, "failed", "the job failed with exit code 1")
        else:
            self._finish_at(attempt, end_ns, end_ns, "completed", "the job completed")

    # -- two on one device ------------------------------------------------------------------------------------------

    def _join(self, attempt: _Attempt, now: int) -> list[_Attempt]:
        """Put the attempt on its devices; returns those who are there already."""
        partners: dict[str, _Attempt] = {}
        for device_id in attempt.device_ids:
            users = self._users.setdefault(device_id, [])
            for user in users:
                partners[user.course.job.job_id] = user
                key = user.course.job.job_id, attempt.course.job.job_id
                pair = self._pairs.get(key)
                if pair is None:
                    pair = self._pairs[key] = _Pair(user, attempt, 0, now, self._options.window_ns)
                    self._plan_window(pair, max(now, user.work_ns, attempt.work_ns))
                pair.gpus += 1
            users.append(attempt)
        return list(partners.values())

    def _part(self, attempt: _Attempt, now: int) -> None:
        """Take the attempt off its devices; those who stay go on at their new speed."""
        partners: dict[str, _Attempt] = {}
        for device_id in attempt.device_ids:
            users = self._users[device_id]
            users.remove(attempt)
            partners.update((user.course.job.job_id, user) for user in users)
        if not partners:
            return
        for key, pair in list(self._pairs.items()):
            if attempt in (pair.host, pair.guest):
                del self._pairs[key]
                pair.over = True
                self._shared.append(self._shared_time(pair, now, attempt.outcome, attempt is pair.guest))
        for user in partners.values():
            self._change_speed(user, now)

    def _speed_beside(self, one: _Attempt, other: _Attempt) -> float:
        types = one.course.job.job_type, other.course.job.job_type
        return max(self._workload.pair_speed.get(types, UNKNOWN_PAIR), STALLED)

    def _change_speed(self, attempt: _Attempt, now: int) -> None:
        """Who shares its devices has changed: what it did so far becomes a segment, and the rest is planned anew."""
        beside = [[u for u in self._users[d] if u is not attempt] for d in attempt.device_ids]
        speed = min((self._speed_beside(attempt, user) for users in beside for user in users), default=1.0)
        gpus = len(attempt.device_ids)
        charge = 1.0 - sum(map(bool, beside)) / (2 * gpus)
        if (speed, charge) == (attempt.speed, attempt.charge):
            return
        if now > attempt.start_ns:
            self._segments.append(self._segment(attempt, now, attempt.share_at(min(attempt.stop_ns, now)), "running"))
        share = attempt.share_at(min(attempt.stop_ns, now))
        attempt.past.append((attempt.work_ns, attempt.share_from, attempt.rate))
        attempt.start_ns, attempt.share_from = now, share
        attempt.work_ns = max(attempt.work_ns, now)
        attempt.speed, attempt.charge, attempt.rate = speed, charge, attempt.rate_alone * speed
        if attempt.outcome in ("preempted", "stopped", "lost"):  # on its way out: nothing more is done
            attempt.stop_ns = max(attempt.stop_ns, now)
            return
        attempt.stop_ns = NEVER
        self._plan_end(attempt)
        self._plan_report(attempt)

    def _plan_window(self, pair: _Pair, from_ns: int) -> None:
        if pair.window_ns > 0:
            self._seq += 1
            heapq.heappush(self._windows, (from_ns + pair.window_ns, self._seq, pair))

    def _take_window(self) -> Event | None:
        """What the kernel tier saw of a pair: of the host here, of the guest by way of the clock."""
        at, _, pair = heapq.heappop(self._windows)
        window_ns, pair.window_ns = pair.window_ns, pair.window_ns * 2
        self._plan_window(pair, at)
        seen = []
        for attempt in (pair.host, pair.guest):
            job_id = attempt.course.job.job_id
            others = dict.fromkeys(
                user.course.job.job_id for d in attempt.device_ids for user in self._users[d] if user is not attempt
            )
            told = min(max(attempt.speed * (1.0 + self._noise.gauss(0.0, self._options.noise)), 0.0), 1.0)
            seen.append(SlowdownSeen(job_id, attempt.number, tuple(others), told, window_ns))
        self._clock.post(seen[1], at_ns=at)
        return seen[0]

    def _shared_time(self, pair: _Pair, now: int, end: str, guest_left: bool) -> SharedTime:
        return SharedTime(
            host=pair.host.course.row,
            guest=pair.guest.course.row,
            gpus=pair.gpus,
            start_ns=pair.start_ns,
            end_ns=now,
            host_speed=self._speed_beside(pair.host, pair.guest),
            guest_speed=self._speed_beside(pair.guest, pair.host),
            end=end,
            guest_left=guest_left,
        )

    def _speed(self, course: _Course, device_ids: tuple[str, ...], nodes: frozenset[str]) -> float:
        """Speed relative to `min_gpus` of the slowest type; a synchronous gang is as slow as its slowest member."""
        job = course.job
        speeds = dict(job.type_speed)
        slowest = min(speeds.get(self._type_of[d], 1.0) / self._slowdown.get(self._node_of[d], 1.0) for d in device_ids)
        curve = course.speed_at
        return slowest * (1.0 if curve is None else float(curve[min(len(device_ids), len(curve) - 1)]))

    def _leave(self, job_id: str, number: int, now: int, delay_ns: int, outcome: Outcome, reason: str) -> None:
        attempt = self._running.get(job_id)
        if attempt is None or attempt.number != number or attempt.outcome in ("preempted", "stopped", "lost"):
            return  # it has ended, or was asked already
        if attempt.end_ns <= now and attempt.outcome in ("completed", "failed"):
            return  # it ends by itself in this very moment
        self._finish_at(attempt, now, now + delay_ns, outcome, reason)

    def _finish_at(self, attempt: _Attempt, stop_ns: int, end_ns: int, outcome: Outcome, reason: str) -> None:
        attempt.stop_ns, attempt.end_ns, attempt.outcome, attempt.reason = stop_ns, end_ns, outcome, reason
        self._seq += 1
        heapq.heappush(self._due, (end_ns, Order.EXIT, self._seq, attempt))

    def _plan_report(self, attempt: _Attempt) -> None:
        course = attempt.course
        if course.next_point < len(course.shares):
            self._seq += 1
            attempt.report_seq = self._seq
            at = attempt.time_of(course.shares[course.next_point])
            heapq.heappush(self._reports, (at, self._seq, attempt))

    # -- events -----------------------------------------------------------------------------------------------------

    def next_before(self, limit: tuple[int, int] | None) -> tuple[int, Event] | None:
        """The earliest event of the cluster before `limit`; due reports come just before whatever comes next."""
        while True:
            own = self._peek()
            if own is None and limit is None:
                return None
            mine = own is not None and (limit is None or own < limit)
            turn = own if mine or limit is None else limit
            assert turn is not None
            if self._reports and self._reports[0][0] <= turn[0]:
                batch = self._take_reports(turn[0])
                if batch:
                    self._events += 1
                    return turn[0], ProgressReported(batch)
            if not mine:
                return None
            event = self._take(turn)
            if event is not None:
                self._events += 1
                return turn[0], event

    def _peek(self) -> tuple[int, int] | None:
        while self._due and not self._is_due(self._due[0]):
            heapq.heappop(self._due)
        best = (self._due[0][0], self._due[0][1]) if self._due else None
        entries = self._workload.entries
        if self._arrived < len(entries):
            arrival = (entries[self._arrived].time_ns, int(Order.FACT))
            best = arrival if best is None else min(best, arrival)
        if self._faults and (self._live or self._arrived < len(entries)):
            fault = (self._faults[0][0], int(Order.FACT))
            best = fault if best is None else min(best, fault)
        while self._windows and self._windows[0][2].over:
            heapq.heappop(self._windows)
        if self._windows:
            window = (self._windows[0][0], int(Order.FACT))
            best = window if best is None else min(best, window)
        return best

    def _is_due(self, entry: tuple[int, int, int, _Attempt]) -> bool:
        """False for a turn that was overtaken: the attempt has left, or leaves at another time."""
        at, order, _, attempt = entry
        if self._running.get(attempt.course.job.job_id) is not attempt:
            return False
        if order == Order.EXIT:
            return attempt.end_ns == at
        return attempt.end_ns == NEVER and attempt.stop_at_ns == at  # a user's stop, while it runs

    def _take(self, turn: tuple[int, int]) -> Event | None:
        entries = self._workload.entries
        if self._faults and self._faults[0][0] == turn[0]:
            return self._take_fault()
        if self._arrived < len(entries) and (entries[self._arrived].time_ns, int(Order.FACT)) == turn:
            return self._arrive(entries[self._arrived])
        if self._windows and (self._windows[0][0], int(Order.FACT)) == turn:
            return self._take_window()
        at, order, _, attempt = heapq.heappop(self._due)
        if order == Order.FACT:
            attempt.stop_ns = at
            return StopRequested(attempt.course.job.job_id, attempt.course.job.user)
        return self._exit(attempt)

    def _arrive(self, entry: Arrival) -> Event:
        job = entry.job
        self._courses[job.job_id] = _Course(
            row=self._arrived,
            job=job,
            truth=entry.truth,
            shares=entry.truth.shares.tolist(),
            speed_at=speedup_curve(job.speedup, job.min_gpus, job.max_gpus),
        )
        self._arrived += 1
        self._live += 1
        return JobSubmitted(job)

    def _take_reports(self, until_ns: int) -> tuple[Report, ...]:
        """All reports due by `until_ns` of attempts that still make progress, in order of time."""
        batch: list[Report] = []
        heap = self._reports
        while heap and heap[0][0] <= until_ns:
            at, seq, attempt = heapq.heappop(heap)
            course = attempt.course
            if seq != attempt.report_seq or at > attempt.stop_ns or self._running.get(course.job.job_id) is not attempt:
                continue
            point = course.next_point
            if course.shares[point] > course.truth.end_fraction:
                continue
            loss = float(course.truth.losses[point])
            course.next_point = point + 1
            batch.append(
                Report(
                    job_id=course.job.job_id,
                    step=int(course.truth.steps[point]),
                    loss=loss if np.isfinite(loss) else None,
                    time_ns=at,
                    attempt=attempt.number,
                    offset=point + 1,
                )
            )
            self._plan_report(attempt)
        return tuple(batch)

    def _exit(self, attempt: _Attempt) -> JobExited:
        self._close_attempt(attempt, attempt.end_ns)
        code = {"completed": 0, "failed": 1}.get(attempt.outcome)
        return JobExited(attempt.course.job.job_id, attempt.number, attempt.outcome, attempt.reason, code)

    def _close_attempt(self, attempt: _Attempt, end_ns: int) -> None:
        course = attempt.course
        stop_ns = min(attempt.stop_ns, end_ns)
        share_to = attempt.share_at(stop_ns)
        if attempt.outcome in ("completed", "failed"):
            share_to = course.truth.end_fraction
        if course.next_point:  # what was reported was reached, to the last bit
            share_to = max(share_to, course.shares[course.next_point - 1])
        kept = share_to
        if attempt.outcome == "lost" and self._options.checkpoint_interval_ns > 0:
            done_ns = max(stop_ns - attempt.first_work_ns, 0)
            kept_ns = done_ns - done_ns % self._options.checkpoint_interval_ns
            kept = attempt.share_at(attempt.first_work_ns + kept_ns)
        course.share = kept
        while course.next_point and course.shares[course.next_point - 1] > kept:
            course.next_point -= 1  # points behind the checkpoint are reached, and reported, once more
        del self._running[course.job.job_id]
        self._part(attempt, end_ns)
        if attempt.outcome not in ("preempted", "lost") or course.given_up:
            self._end(course, end_ns)
        self._segments.append(self._segment(attempt, end_ns, share_to, attempt.outcome, kept))

    def _segment(
        self, attempt: _Attempt, end_ns: int, share_to: float, outcome: Outcome | Literal["running"], kept: float = -1.0
    ) -> Segment:
        stop_ns = min(attempt.stop_ns, end_ns)
        return Segment(
            row=attempt.course.row,
            attempt=attempt.number,
            gpus=len(attempt.device_ids),
            gpu_type=attempt.gpu_type,
            start_ns=attempt.start_ns,
            work_ns=min(attempt.work_ns, stop_ns),
            stop_ns=stop_ns,
            end_ns=end_ns,
            share_from=attempt.share_from,
            share_to=share_to,
            kept=share_to if kept < 0 else kept,
            outcome=outcome,
            charge=attempt.charge,
        )

    # -- nodes ------------------------------------------------------------------------------------------------------

    def _plan_loss(self, node: str, now: int) -> None:
        wait_s = self._rng.expovariate(self._options.node_loss_per_day / 86_400)
        heapq.heappush(self._faults, (now + round(wait_s * NS_PER_S), 0, node))

    def _take_fault(self) -> Event | None:
        at, back, name = heapq.heappop(self._faults)
        node = next(node for node in self._options.nodes if node.name == name)
        if back:
            self._present.add(name)
            self._capacity += [(at, device.gpu_type, 1) for device in node.devices]
            self._plan_loss(name, at)
            return NodeJoined(node)
        self._present.discard(name)
        self._capacity += [(at, device.gpu_type, -1) for device in node.devices]
        heapq.heappush(self._faults, (at + self._options.repair_ns, 1, name))
        for attempt in list(self._running.values()):
            if name in attempt.nodes:
                self._finish_at(attempt, at, at, "lost", f"node {name} was lost")
        return NodeLost(name, "the node stopped answering")

    # -- what happened ----------------------------------------------------------------------------------------------

    def record(self) -> Record:
        """Who ran when, until now."""
        now = self._clock.now_ns()
        running = [self._segment(a, now, a.share_at(min(a.stop_ns, now)), "running") for a in self._running.values()]
        shared = [self._shared_time(pair, now, "", False) for pair in self._pairs.values()]
        return Record(
            (*self._segments, *running), tuple(self._capacity), tuple(self._ended_ns), self._events,
            (*self._shared, *shared),
        )  # fmt: skip
