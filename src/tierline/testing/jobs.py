"""A fake cluster for the job scheduler: answers every action at once and checks the hard limits from outside.

Unlike `backends/jobs/sim` it has no progress of its own: a test says what jobs report and when they end.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from tierline.clock import order_of
from tierline.core.actions import Action, PreemptJob, RecordEnd, SetTimer, StartJob, StopJob
from tierline.core.contracts import JobPolicy, Packing
from tierline.core.events import (
    Event,
    JobExited,
    JobStarted,
    JobSubmitted,
    NodeJoined,
    ProgressReported,
    TimerFired,
)
from tierline.core.nouns import NS_PER_S, Device, Job, Node, Outcome, Report
from tierline.policies.jobs import make_policy
from tierline.schedulers.jobs import JobScheduler, JobSchedulerOptions


def node(name: str = "n", gpus: int = 2, gpu_type: str = "gpu", memory_bytes: int = 0) -> Node:
    """A node with devices `name/0`, `name/1`, …"""
    return Node(name, tuple(Device(f"{name}/{i}", gpu_type, memory_bytes) for i in range(gpus)))


class FakeCluster:
    """Drives a `JobScheduler` and keeps its own book of who holds which device.

    `answer_preemptions=False` leaves preempted and stopped jobs on their devices until `exit` is called. Raises
    AssertionError the moment an action breaks a hard limit: a device given twice or unknown, an attempt started twice,
    a job started outside its GPU limits, an action about an attempt that does not run; where devices are shared
    (`packing`): a third user of a device, one that keeps its devices to itself, more memory than the device has.
    """

    def __init__(
        self,
        policy: str | JobPolicy = "fifo",
        nodes: Sequence[Node] = (),
        options: JobSchedulerOptions = JobSchedulerOptions(),
        answer_preemptions: bool = True,
        packing: Packing | None = None,
    ) -> None:
        self.scheduler = JobScheduler(make_policy(policy) if isinstance(policy, str) else policy, options, packing)
        self.now_ns = 0
        self.answer_preemptions = answer_preemptions
        self.actions: list[Action] = []
        self.recorded: list[tuple[int, Event, list[Action]]] = []
        self.devices: dict[str, Device] = {}
        self.running: dict[str, StartJob] = {}
        self.leaving: dict[str, Outcome] = {}
        self.ended: dict[str, str] = {}
        self._jobs: dict[str, Job] = {}
        self._last_attempt: dict[str, int] = {}
        self._heap: list[tuple[int, int, int, Event]] = []
        self._seq = 0
        for each in nodes:
            self.send(NodeJoined(each))

    # ---- driving -----------------------------------------------------------------------------------------------

    def send(self, *events: Event) -> list[Action]:
        """Deliver events now and everything that follows at this moment; returns the actions."""
        before = len(self.actions)
        for event in events:
            self._post(self.now_ns, event)
        self._drain(self.now_ns)
        return self.actions[before:]

    def submit(self, *jobs: Job) -> list[Action]:
        """Submit like a user: checked first, all or none."""
        events = [JobSubmitted(job) for job in jobs]
        self.scheduler.check(events)
        return self.send(*events)

    def advance(self, seconds: float) -> list[Action]:
        """Let time pass; timers fire."""
        before = len(self.actions)
        until = self.now_ns + int(seconds * NS_PER_S)
        self._drain(until)
        self.now_ns = until
        return self.actions[before:]

    def report(self, job_id: str, step: int, loss: float | None) -> list[Action]:
        attempt = self._last_attempt.get(job_id, 1)
        return self.send(ProgressReported((Report(job_id, step, loss, self.now_ns, attempt),)))

    def exit(self, job_id: str, outcome: Outcome = "completed", reason: str = "done") -> list[Action]:
        """The running attempt ends now."""
        start = self.running[job_id]
        return self.send(JobExited(job_id, start.attempt, self.leaving.get(job_id, outcome), reason))

    @property
    def free(self) -> set[str]:
        return set(self.devices) - {d for start in self.running.values() for d in start.device_ids}

    # ---- answering ---------------------------------------------------------------------------------------------

    def _post(self, at_ns: int, event: Event) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (at_ns, order_of(event), self._seq, event))

    def _drain(self, until_ns: int) -> None:
        while self._heap and self._heap[0][0] <= until_ns:
            at_ns, _, _, event = heapq.heappop(self._heap)
            self.now_ns = max(self.now_ns, at_ns)
            self._before(event)
            actions = self.scheduler.handle(self.now_ns, event)
            self.recorded.append((self.now_ns, event, actions))
            self.actions += actions
            for action in actions:
                self._answer(action)

    def _before(self, event: Event) -> None:
        match event:
            case NodeJoined(joined):
                self.devices.update((d.device_id, d) for d in joined.devices)
            case JobSubmitted(job):
                self._jobs[job.job_id] = job
            case JobExited(job_id, attempt):
                if job_id in self.running and self.running[job_id].attempt == attempt:
                    del self.running[job_id]
                    self.leaving.pop(job_id, None)
            case _:
                pass

    def _answer(self, action: Action) -> None:
        match action:
            case SetTimer(name, at_ns):
                self._post(at_ns, TimerFired(name))
            case StartJob(job_id, attempt):
                self._check_start(action)
                self.running[job_id] = action
                self._last_attempt[job_id] = attempt
                self._post(self.now_ns, JobStarted(job_id, attempt))
            case PreemptJob(job_id, attempt) | StopJob(job_id, attempt):
                outcome: Outcome = "stopped" if isinstance(action, StopJob) else "preempted"
                if job_id not in self.running:
                    return  # its node is gone, and it with it
                assert self.running[job_id].attempt == attempt, f"{job_id}: attempt {attempt} does not run"
                self.leaving[job_id] = outcome
                if self.answer_preemptions:
                    self._post(self.now_ns, JobExited(job_id, attempt, outcome, action.reason))
            case RecordEnd(job_id, phase):
                assert job_id not in self.ended, f"{job_id} ended twice"
                self.ended[job_id] = phase
            case _:
                pass

    def _check_start(self, action: StartJob) -> None:
        job = self._jobs[action.job_id]
        assert action.job_id not in self.running, f"{action.job_id} runs already"
        assert action.job_id not in self.ended, f"{action.job_id} has ended"
        assert action.attempt == self._last_attempt.get(action.job_id, 0) + 1, "attempts count up by one"
        assert len(set(action.device_ids)) == len(action.device_ids)
        if action.shares_with:
            self._check_shared(action)
        else:
            assert set(action.device_ids) <= self.free, f"{action.job_id} was given devices that are not free"
        assert job.min_gpus <= len(action.device_ids) <= job.max_gpus
        types = {self.devices[d].gpu_type for d in action.device_ids}
        assert len(types) == 1, "a job runs on one GPU type"
        assert not job.gpu_types or types <= set(job.gpu_types)
        memory = [self.devices[d].memory_bytes for d in action.device_ids]
        assert all(m == 0 or m >= job.gpu_memory_bytes for m in memory)

    def _check_shared(self, action: StartJob) -> None:
        guest = self._jobs[action.job_id]
        there: set[str] = set()
        for device_id in action.device_ids:
            users = [job_id for job_id, start in self.running.items() if device_id in start.device_ids]
            assert len(users) == 1, f"{device_id} has {len(users)} users already"
            there.update(users)
            host, has = self._jobs[users[0]], self.devices[device_id].memory_bytes
            assert guest.shareable and host.shareable and guest.preemptible
            assert has == 0 or (guest.gpu_memory_bytes > 0 and host.gpu_memory_bytes > 0)
            assert has == 0 or guest.gpu_memory_bytes + host.gpu_memory_bytes <= has
            assert users[0] not in self.leaving, f"{users[0]} is leaving"
        assert there == set(action.shares_with), "the action names those it shares with"
