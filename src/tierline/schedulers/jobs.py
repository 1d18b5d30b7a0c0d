"""The job tier's state machine: events in, actions out, no I/O. Policies propose, this disposes.

Legal moves::

    WAITING -> QUEUED <-> HELD            dependencies, hold and release
    QUEUED -> STARTING -> RUNNING         a round placed it; the backend confirmed
    STARTING | RUNNING -> RELEASING       asked to leave (preempt, hold, stop)
    RELEASING -> QUEUED | HELD            left; waits for its next attempt
    STARTING | RUNNING -> QUEUED          lost through no fault of its own, within `max_restarts`
    any live phase -> COMPLETED | FAILED | STOPPED

Rounds. A *quantum* round, at multiples of `quantum_ns`, may preempt; a *fill* round, soon after a device came free or a
job arrived, only hands out free devices (where devices are shared it also adds and removes guests). Both ask the policy
the same question. Devices of a preempted job come free when
the backend reports its exit; the fill round that follows gives them to the best waiting job, so that live and simulated
clusters, with slow and instant exits, take one path.

Over 400 lines, because the transitions and the hard limits shall stand in one place; what is known (`job_state`), asked
(`job_questions`) and kept (`job_snapshot`) stands beside it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tierline.core.actions import Action, PreemptJob, RecordEnd, RecordRefusal, SetTimer, StartJob, StopJob
from tierline.core.contracts import JobPolicy, Packing
from tierline.core.events import (
    DevicesBlocked,
    Event,
    JobExited,
    JobHeld,
    JobReleased,
    JobStarted,
    JobSubmitted,
    NodeJoined,
    NodeLost,
    PairsMeasured,
    ProgressReported,
    SharesSet,
    SlowdownSeen,
    StopRequested,
    SweepDeclared,
    TimerFired,
)
from tierline.core.nouns import NS_PER_S, Job, PairSpeed, Phase, Sweep
from tierline.core.status import AttemptStatus, ClusterStatus, JobStatus
from tierline.core.views import EMPTY_PLAN, ClusterView, Grant, Plan
from tierline.schedulers import job_checks, job_sharing, job_snapshot
from tierline.schedulers.job_questions import cluster_status, job_status
from tierline.schedulers.job_record import JobRecord, Leaving, find_record
from tierline.schedulers.job_state import FairBy, JobTierState


@dataclass(frozen=True, slots=True)
class JobSchedulerOptions:
    """`quantum_ns` between preemptive rounds; `restart_ns` expected cost of a resumption (checkpoint load, start-up);
    `fill_ns` how long a fill round waits for company; `fair_by` whose jobs share one weight; `seed` of the rounds."""

    quantum_ns: int = 60 * NS_PER_S
    restart_ns: int = 30 * NS_PER_S
    fill_ns: int = 0
    fair_by: FairBy = "job"
    seed: int = 0


class JobScheduler:
    """`handle(now_ns, event)` folds one event into the state and returns what is to be done. Deterministic.

    With `packing` a device may have two users (`job_sharing`); without it every device is exclusive.
    """

    def __init__(
        self,
        policy: JobPolicy,
        options: JobSchedulerOptions = JobSchedulerOptions(),
        packing: Packing | None = None,
    ) -> None:
        self.policy = policy
        self.options = options
        self.packing = packing
        self._state = JobTierState()
        self._handlers: dict[type, Callable[[int, Any], list[Action]]] = {
            NodeJoined: self._on_node_joined,
            NodeLost: self._on_node_lost,
            DevicesBlocked: self._on_devices_blocked,
            SharesSet: self._on_shares_set,
            SweepDeclared: self._on_sweep_declared,
            JobSubmitted: self._on_job_submitted,
            JobHeld: self._on_job_held,
            JobReleased: self._on_job_released,
            StopRequested: self._on_stop_requested,
            JobStarted: self._on_job_started,
            ProgressReported: self._on_progress_reported,
            JobExited: self._on_job_exited,
            PairsMeasured: self._on_pairs_measured,
            SlowdownSeen: self._on_slowdown_seen,
            TimerFired: self._on_timer_fired,
        }

    # ---- the two entrances -------------------------------------------------------------------------------------

    def handle(self, now_ns: int, event: Event) -> list[Action]:
        """Fold one event. Events about jobs or attempts that are over are ignored (they crossed an answer)."""
        return self._handlers[type(event)](now_ns, event)

    def check(self, events: Sequence[Event]) -> None:
        """Raises `InvalidInput` with one sentence when a user's events cannot all be accepted; changes nothing."""
        new_ids: set[str] = set()
        for event in events:
            match event:
                case JobSubmitted(job):
                    job_checks.check_job(job, self._state.jobs, new_ids, self._state.pool)
                    new_ids.add(job.job_id)
                case SweepDeclared(sweep):
                    job_checks.check_sweep(sweep, self._state.sweeps)
                case JobHeld(job_id) | StopRequested(job_id):
                    job_checks.live_record(job_id, self._state.jobs)
                case JobReleased(job_id):
                    job_checks.check_release(job_id, self._state.jobs)
                case SharesSet(shares):
                    job_checks.check_shares(shares)
                case _:
                    pass

    # ---- nodes and devices -------------------------------------------------------------------------------------

    def _on_node_joined(self, now_ns: int, event: NodeJoined) -> list[Action]:
        known = len(self._state.pool.gpu_types)
        self._state.pool.join(event.node)
        if len(self._state.pool.gpu_types) != known:
            jobs = (self._state.jobs[job_id].job for job_id in self._state.table.ids)
            self._state.table.set_types(len(self._state.pool.gpu_types), map(self._state.type_speed, jobs))
        return self._want_fill(now_ns)

    def _on_node_lost(self, now_ns: int, event: NodeLost) -> list[Action]:
        actions: list[Action] = []
        for job_id in self._state.pool.leave(event.name):
            record = self._state.jobs[job_id]
            if any(self._state.pool.node_of(d) is not None for d in record.device_ids):
                actions.append(PreemptJob(job_id, record.attempt, f"node {event.name} is lost: {event.reason}"))
            actions += self._lost(now_ns, record, f"node {event.name} is lost: {event.reason}")
        return actions

    def _on_devices_blocked(self, now_ns: int, event: DevicesBlocked) -> list[Action]:
        self._state.pool.block(event.node, event.device_ids, event.reason)
        return self._want_fill(now_ns)

    # ---- users -------------------------------------------------------------------------------------------------

    def _on_shares_set(self, now_ns: int, event: SharesSet) -> list[Action]:
        self._state.shares.update(event.shares)
        self._state.weights_stale = True
        return []

    def _on_sweep_declared(self, now_ns: int, event: SweepDeclared) -> list[Action]:
        sweep = event.sweep
        if sweep.sweep_id not in self._state.sweeps:
            self._state.sweeps[sweep.sweep_id] = sweep
            self._state.bank.declare(self._state.sweep_row(sweep.sweep_id), sweep.chance, sweep.target)
        return []

    def _on_job_submitted(self, now_ns: int, event: JobSubmitted) -> list[Action]:
        job = event.job
        user = self._state.users.setdefault(job.user, len(self._state.users))
        sweep = self._state.sweep_row(job.sweep or f"job:{job.job_id}")
        job_type = self._state.interference.index(job)
        row = self._state.table.append(job, now_ns, user, sweep, self._state.type_speed(job), job_type)
        self._state.bank.append(sweep, job.total_steps, job.params, job.kind)
        record = JobRecord(job, now_ns, row, Phase.WAITING)
        self._state.jobs[job.job_id] = record
        self._state.weights_stale = True
        self._state.elastic += job.max_gpus > job.min_gpus
        actions: list[Action] = []
        ended = [self._state.jobs[d] for d in job.after if self._state.jobs[d].phase in (Phase.FAILED, Phase.STOPPED)]
        if ended:
            return self._end(now_ns, record, Phase.STOPPED, _dependency_reason(ended[0]))
        for dependency in job.after:
            if self._state.jobs[dependency].phase is not Phase.COMPLETED:
                record.waits_for += 1
                self._state.dependents.setdefault(dependency, []).append(job.job_id)
        if job.deadline_ns:
            self._state.deadlines[job.job_id] = job.deadline_ns
            actions += self._set_timer("deadline", job.deadline_ns)  # a timer for an earlier one stays
        if job.held:
            record.phase, record.reason = Phase.HELD, "held by its user"
        elif record.waits_for:
            record.phase, record.reason = Phase.WAITING, f"waits for {', '.join(job.after)}"
        else:
            self._enqueue(record)
        return actions + self._want_fill(now_ns)

    def _on_job_held(self, now_ns: int, event: JobHeld) -> list[Action]:
        record = self._state.live(event.job_id)
        if record is None or record.phase is Phase.HELD:
            return []
        if record.phase.holds_devices:
            if record.leaving == "stop":
                return []
            return self._ask_to_leave(record, "hold", f"held by {event.by}")
        self._dequeue(record)
        record.phase, record.reason = Phase.HELD, f"held by {event.by}"
        return []

    def _on_job_released(self, now_ns: int, event: JobReleased) -> list[Action]:
        record = self._state.live(event.job_id)
        if record is None:
            return []
        if record.leaving == "hold":
            record.leaving = "preempt"
        elif record.phase is Phase.HELD:
            self._requeue(now_ns, record, f"released by {event.by}")
        return self._want_fill(now_ns)

    def _on_stop_requested(self, now_ns: int, event: StopRequested) -> list[Action]:
        record = self._state.live(event.job_id)
        if record is None or record.leaving == "stop":
            return []
        return self._stop(now_ns, record, f"{event.reason} ({event.by})" if event.by else event.reason)

    # ---- what backends report ----------------------------------------------------------------------------------

    def _on_job_started(self, now_ns: int, event: JobStarted) -> list[Action]:
        record = self._state.live(event.job_id)
        if record is not None and record.attempt == event.attempt and record.phase is Phase.STARTING:
            record.phase = Phase.RUNNING
        return []

    def _on_progress_reported(self, now_ns: int, event: ProgressReported) -> list[Action]:
        table = self._state.table
        for report in event.reports:
            record = self._state.jobs.get(report.job_id)
            if record is None:
                continue
            record.report_offset = max(record.report_offset, report.offset)
            record.reports += 1
            record.step = max(record.step, report.step)
            if report.loss is not None:
                record.loss = report.loss
                record.best_loss = report.loss if record.best_loss is None else min(record.best_loss, report.loss)
            row = record.row
            if row < 0:
                continue
            table.ints("step")[row] = record.step
            table.ints("reports")[row] = record.reports
            self._state.bank.observe(
                row, report.step, report.loss, report.time_ns, report.attempt, self._state.speed(record)
            )
        return []

    def _on_job_exited(self, now_ns: int, event: JobExited) -> list[Action]:
        record = self._state.live(event.job_id)
        if record is None or record.attempt != event.attempt or not record.phase.holds_devices:
            return []
        leaving = record.leaving
        if event.outcome == "completed":
            return self._end(now_ns, record, Phase.COMPLETED, event.reason)
        if event.outcome == "lost" and leaving != "stop":
            return self._lost(now_ns, record, event.reason)
        if event.outcome == "stopped" or leaving == "stop":
            why = record.reason if leaving == "stop" else event.reason
            return self._end(now_ns, record, Phase.STOPPED, why)
        if event.outcome == "failed" and not leaving:
            return self._end(now_ns, record, Phase.FAILED, event.reason)
        self._vacate(now_ns, record)
        if leaving == "hold":
            record.phase = Phase.HELD
        else:
            self._requeue(now_ns, record, record.reason)
        return self._want_fill(now_ns)

    def _on_pairs_measured(self, now_ns: int, event: PairsMeasured) -> list[Action]:
        self._state.interference.measure(event.pairs)
        return self._want_fill(now_ns)

    def _on_slowdown_seen(self, now_ns: int, event: SlowdownSeen) -> list[Action]:
        record = self._state.live(event.job_id)
        if record is None or record.attempt != event.attempt or not record.phase.holds_devices:
            return []
        job_sharing.see(self._state, record, event.with_jobs, event.speed)
        return self._want_fill(now_ns)

    # ---- transitions -------------------------------------------------------------------------------------------

    def _enqueue(self, record: JobRecord) -> None:
        record.phase = Phase.QUEUED
        self._state.table.bools("eligible")[record.row] = True
        self._state.queued += 1

    def _dequeue(self, record: JobRecord) -> None:
        if record.phase is Phase.QUEUED:
            self._state.table.bools("eligible")[record.row] = False
            self._state.queued -= 1

    def _requeue(self, now_ns: int, record: JobRecord, reason: str) -> None:
        """Back to the queue (or to waiting for dependencies) after a hold, a preemption or a loss."""
        record.reason = reason
        self._state.table.ints("queued_ns")[record.row] = now_ns
        if record.waits_for:
            record.phase = Phase.WAITING
        else:
            self._enqueue(record)

    def _vacate(self, now_ns: int, record: JobRecord) -> None:
        """Take the job off its devices and settle its account."""
        received = len(record.device_ids) * (now_ns - record.started_ns)
        record.attained_gpu_ns += received
        partners = self._state.pool.partners(record.job.job_id, record.device_ids)
        self._state.pool.release(record.job.job_id, record.device_ids)
        record.device_ids, record.leaving = (), ""
        if partners:
            job_sharing.recount(self._state, now_ns, (record.job.job_id, *partners))
        row, table = record.row, self._state.table
        table.ints("attained_gpu_ns")[row] = record.attained_gpu_ns
        table.ints("gpus")[row] = 0
        table.ints("gpu_type")[row] = -1
        table.bools("running")[row] = False
        table.bools("eligible")[row] = False

    def _lost(self, now_ns: int, record: JobRecord, reason: str) -> list[Action]:
        hold, stop = record.leaving == "hold", record.leaving == "stop"
        record.losses += 1
        if stop:
            return self._end(now_ns, record, Phase.STOPPED, record.reason)
        if record.losses > record.job.max_restarts:
            why = f"{reason}; lost {record.losses} times, its limit is {record.job.max_restarts}"
            return self._end(now_ns, record, Phase.FAILED, why)
        self._vacate(now_ns, record)
        if hold:
            record.phase = Phase.HELD
        else:
            self._requeue(now_ns, record, f"starts again: {reason}")
        return self._want_fill(now_ns)

    def _ask_to_leave(
        self, record: JobRecord, leaving: Leaving, reason: str, density: float = 0.0, price: float = 0.0
    ) -> list[Action]:
        record.leaving, record.reason = leaving, reason
        record.phase = Phase.RELEASING
        self._state.table.bools("eligible")[record.row] = False
        if leaving == "stop":
            return [StopJob(record.job.job_id, record.attempt, reason)]
        return [PreemptJob(record.job.job_id, record.attempt, reason, density, price)]

    def _stop(self, now_ns: int, record: JobRecord, reason: str) -> list[Action]:
        if record.phase.holds_devices:
            return self._ask_to_leave(record, "stop", reason)
        return self._end(now_ns, record, Phase.STOPPED, reason)

    def _end(self, now_ns: int, record: JobRecord, phase: Phase, reason: str) -> list[Action]:
        """End the job, and every job that waited for it in vain: a chain of any length, hence no recursion."""
        actions = self._end_one(now_ns, record, phase, reason)
        ended = [record]
        while ended:
            dependency = ended.pop()
            for dependent_id in self._state.dependents.pop(dependency.job.job_id, ()):
                dependent = self._state.live(dependent_id)
                if dependent is None:
                    continue
                if dependency.phase is not Phase.COMPLETED:
                    actions += self._end_one(now_ns, dependent, Phase.STOPPED, _dependency_reason(dependency))
                    ended.append(dependent)
                    continue
                dependent.waits_for -= 1
                if dependent.waits_for == 0 and dependent.phase is Phase.WAITING:
                    self._requeue(now_ns, dependent, "its dependencies have completed")
        self._state.compact()
        return actions + self._want_fill(now_ns)

    def _end_one(self, now_ns: int, record: JobRecord, phase: Phase, reason: str) -> list[Action]:
        if record.phase.holds_devices:
            self._vacate(now_ns, record)
        else:
            self._dequeue(record)
        record.utility = self._state.bank.utility(record.row)
        self._state.bank.end(record.row, phase)
        self._state.table.end(record.row)
        job = record.job
        record.row, record.phase, record.reason, record.ended_ns = -1, phase, reason, now_ns
        self._state.weights_stale = True
        self._state.elastic -= job.max_gpus > job.min_gpus
        self._state.deadlines.pop(job.job_id, None)
        return [RecordEnd(job.job_id, phase.name.lower(), reason)]

    # ---- rounds ------------------------------------------------------------------------------------------------

    def _want_fill(self, now_ns: int) -> list[Action]:
        """A fill round when there is something to hand out and somebody to take it; the next quantum when due."""
        actions: list[Action] = []
        if self._has_use_for_fill():
            actions += self._set_timer("fill", now_ns + self.options.fill_ns)
        if self.policy.preemptive and (self._state.queued or self._state.elastic):
            quantum = self.options.quantum_ns
            actions += self._set_timer("quantum", (now_ns // quantum + 1) * quantum)
        return actions

    def _has_use_for_fill(self) -> bool:
        pool, queued = self._state.pool, self._state.queued
        if self.packing is not None and (pool.guest or (queued and pool.owner)):
            return True  # guests may have to leave, or to move; a device in use may take a guest
        return bool(queued and pool.free_count)

    def _set_timer(self, name: str, at_ns: int) -> list[Action]:
        pending = self._state.timers.get(name)
        if pending is not None and pending <= at_ns:
            return []
        self._state.timers[name] = at_ns
        return [SetTimer(name, at_ns)]

    def _on_timer_fired(self, now_ns: int, event: TimerFired) -> list[Action]:
        due = self._state.timers.get(event.name)
        if due is None or due > now_ns:
            return []  # set again for another time since
        del self._state.timers[event.name]
        if event.name == "deadline":
            return self._enforce_deadlines(now_ns)
        actions: list[Action] = []
        if event.name == "quantum":
            actions += self._round_of(now_ns, may_preempt=True)
            if self._state.queued or self._state.elastic:
                actions += self._set_timer("quantum", now_ns + self.options.quantum_ns)
        elif self._has_use_for_fill():
            actions += self._round_of(now_ns, may_preempt=False)
        return actions

    def _enforce_deadlines(self, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        for job_id in [j for j, at_ns in self._state.deadlines.items() if at_ns <= now_ns]:
            del self._state.deadlines[job_id]
            record = self._state.live(job_id)
            if record is not None:
                actions += self._stop(now_ns, record, "its deadline has passed")
        if self._state.deadlines:
            actions += self._set_timer("deadline", min(self._state.deadlines.values()))
        return actions

    def view(self, now_ns: int, *, may_preempt: bool) -> ClusterView:
        """What the policy sees now. Windows on live columns: valid until the next event is handled."""
        if self._state.weights_stale:
            self._state.reweigh(self.options.fair_by)
        columns = self._state.table.columns(now_ns)
        forecast = None
        if self.policy.needs_forecast:
            forecast = self._state.bank.forecast(
                columns,
                now_ns,
                self.options.quantum_ns / 1e9,
                self.options.restart_ns / 1e9,
                curves=self.policy.needs_curves,
            )
        return ClusterView(
            now_ns=now_ns,
            quantum_ns=self.options.quantum_ns,
            restart_ns=self.options.restart_ns,
            may_preempt=may_preempt,
            gpu_types=tuple(self._state.pool.gpu_types),
            free=self._state.pool.free(),
            total=self._state.pool.total(),
            jobs=columns,
            forecast=forecast,
            users=tuple(self._state.users),
            sweeps=tuple(self._state.sweep_index),
            sharing=job_sharing.sharing_view(self._state) if self.packing is not None else None,
        )

    def _round_of(self, now_ns: int, *, may_preempt: bool) -> list[Action]:
        self._state.round += 1
        rng = random.Random(self.options.seed * 1_000_003 + self._state.round)
        view = self.view(now_ns, may_preempt=may_preempt)
        plan = self.policy.plan(view, rng) if self.packing is None else self.packing.plan(self.policy, view, rng)
        if plan is EMPTY_PLAN:
            return []
        if plan.price is not None:
            self._state.price = dict(plan.price)
        if plan.density is not None:
            self._state.table.floats("bid")[: len(plan.density)] = plan.density
        return self._carry_out(now_ns, plan, may_preempt=may_preempt)

    def _carry_out(self, now_ns: int, plan: Plan, *, may_preempt: bool) -> list[Action]:
        actions: list[Action] = []
        ids, jobs = self._state.table.ids, self._state.jobs
        records = [
            (grant, jobs[ids[grant.row]], tuple(jobs[ids[row]] for row in grant.onto) if grant.onto else ())
            for grant in plan.grants
        ]
        # Rows may move while drops are carried out: name all jobs first.
        for drop, job_id in [(drop, self._state.table.ids[drop.row]) for drop in plan.drops]:
            dropped = self._state.live(job_id)
            if dropped is not None and dropped.leaving != "stop":
                actions += self._stop(now_ns, dropped, drop.reason)
        leaving = False
        for grant, record, hosts in records:
            job_id = record.job.job_id
            holds = len(record.device_ids)
            if record.phase.is_terminal or record.phase is Phase.RELEASING or holds == grant.gpus > 0:
                continue
            price = self._price_for(grant)
            if holds:
                is_guest = self._state.pool.is_guest(job_id, record.device_ids)
                if not (may_preempt or is_guest) or not record.job.preemptible:
                    why = "between quanta nothing is preempted" if not may_preempt else "it is not preemptible"
                    actions.append(RecordRefusal(job_id, f"not taken off its devices: {why} ({grant.reason})"))
                    continue
                leaving = True
                actions += self._ask_to_leave(record, "preempt", grant.reason, grant.density, price)
            elif grant.gpus == 0:
                continue
            elif record.phase is not Phase.QUEUED:
                actions.append(RecordRefusal(job_id, f"not started: it is {record.phase.name.lower()}"))
            else:
                actions += self._start(now_ns, record, grant, hosts, price, devices_to_come=leaving)
        return actions

    def _start(
        self,
        now_ns: int,
        record: JobRecord,
        grant: Grant,
        hosts: tuple[JobRecord, ...],
        price: float,
        *,
        devices_to_come: bool,
    ) -> list[Action]:
        job = record.job
        if not job.min_gpus <= grant.gpus <= job.max_gpus:
            limits = f"{job.min_gpus}..{job.max_gpus}"
            return [RecordRefusal(job.job_id, f"not started: {grant.gpus} GPUs proposed, it takes {limits}")]
        if self._state.table.type_speed[record.row, grant.gpu_type] <= 0:
            return [
                RecordRefusal(job.job_id, f"not started: it cannot run on {self._state.pool.gpu_types[grant.gpu_type]}")
            ]
        gpu_type = self._state.pool.gpu_types[grant.gpu_type]
        reason, shares_with = grant.reason, tuple[str, ...]()
        if hosts:
            device_ids, why_not = job_sharing.choose_devices(self._state, record, hosts, grant.gpus, gpu_type)
        else:
            why_not = f"{grant.gpus} free {gpu_type} devices are not to be had"
            device_ids = self._state.pool.place(job.job_id, gpu_type, grant.gpus) or ()
        if not device_ids:
            if devices_to_come:
                record.reason = "chosen; its devices are being released"
                return []
            return [RecordRefusal(job.job_id, f"not started: {why_not}")]
        if hosts:
            self._state.pool.share(job.job_id, device_ids)
            shares_with = tuple(self._state.pool.partners(job.job_id, device_ids))
            reason = f"shares {', '.join(device_ids)} with {', '.join(shares_with)}: {reason}"
        self._dequeue(record)
        record.attempt += 1
        record.resume = record.attempt > 1
        record.phase, record.device_ids, record.started_ns = Phase.STARTING, device_ids, now_ns
        record.reason, record.density, record.price = reason, grant.density, price
        record.shares_with = shares_with
        row, table = record.row, self._state.table
        table.ints("gpus")[row] = grant.gpus
        table.ints("gpu_type")[row] = grant.gpu_type
        table.ints("started_ns")[row] = now_ns
        table.ints("restarts")[row] = record.attempt - 1
        table.bools("running")[row] = table.bools("eligible")[row] = True
        if shares_with:
            job_sharing.recount(self._state, now_ns, (job.job_id, *shares_with))
        return [
            StartJob(job.job_id, record.attempt, device_ids, record.resume, reason, grant.density, price, shares_with)
        ]

    def _price_for(self, grant: Grant) -> float:
        return self._state.price.get(self._state.pool.gpu_types[grant.gpu_type], 0.0) if grant.gpu_type >= 0 else 0.0

    # ---- questions ---------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        return find_record(job_id, self._state.jobs).job

    def status(self, job_id: str, now_ns: int) -> JobStatus:
        return job_status(self._state, find_record(job_id, self._state.jobs), now_ns)

    def statuses(self, now_ns: int) -> list[JobStatus]:
        """All jobs ever accepted, in order of submission."""
        return [job_status(self._state, record, now_ns) for record in self._state.jobs.values()]

    def cluster(self, now_ns: int) -> ClusterStatus:
        return cluster_status(self._state, type(self.policy).__name__, self.options.quantum_ns / 1e9, now_ns)

    def attempts(self) -> list[AttemptStatus]:
        """The attempts that should exist now; a backend recovers from these."""
        return [record.attempt_status() for record in self._state.jobs.values() if record.phase.holds_devices]

    def knows(self, pairs: Sequence[PairSpeed]) -> bool:
        """Whether these measured pairs have been told."""
        return self._state.interference.knows(pairs)

    def pending_timers(self) -> list[SetTimer]:
        return [SetTimer(name, at_ns) for name, at_ns in self._state.timers.items()]

    def sweeps(self) -> list[Sweep]:
        return list(self._state.sweeps.values())

    def shares(self) -> dict[str, float]:
        return dict(self._state.shares)

    def dump(self) -> dict[str, Any]:
        """The whole state as JSON-able data (`job_snapshot.py`)."""
        return job_snapshot.dump(self._state, self.policy)

    def load(self, state: dict[str, Any]) -> None:
        """Restore a dump into this fresh scheduler."""
        job_snapshot.load(self._state, self.policy, state)


def _dependency_reason(dependency: JobRecord) -> str:
    return f"its dependency {dependency.job.job_id} has {dependency.phase.name.lower()}"
