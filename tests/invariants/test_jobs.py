"""Named invariants of the job tier under random events (docs/invariants.md). FakeCluster asserts the hard limits."""

from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tierline.core.errors import TierlineError
from tierline.core.events import (
    DevicesBlocked,
    JobExited,
    JobHeld,
    JobReleased,
    NodeJoined,
    NodeLost,
    PairsMeasured,
    SlowdownSeen,
    StopRequested,
)
from tierline.core.nouns import Job, Phase
from tierline.core.views import Grant
from tierline.policies.jobs import make_policy
from tierline.policies.jobs.packing import GainPacking, without_guests
from tierline.schedulers.jobs import JobScheduler
from tierline.testing.jobs import FakeCluster, node
from tierline.testing.policies import PAIRS, TYPES, waits_in_vain

POLICIES = st.sampled_from(["explsched", "fifo", "fair", "las", "slaq", "gandiva", "asha", "srtf", "optimus"])


class JobTier(RuleBasedStateMachine):
    """Users, nodes and jobs do what they like; the scheduler keeps its promises."""

    packing = None
    memory_bytes = 0

    @initialize(policy=POLICIES, answer=st.booleans())
    def start(self, policy, answer):
        self.begin(policy, answer)

    def begin(self, policy, answer):
        self.nodes = [node("a", 4, memory_bytes=self.memory_bytes), node("b", 2, "big")]
        self.cluster = FakeCluster(policy, self.nodes, answer_preemptions=answer, packing=self.packing)
        self.policy = policy
        self.lost = set()
        self.count = 0
        self.crowd()

    def crowd(self):
        """Who is there at the beginning."""

    def _live(self, data):
        live = [j for j in (f"j{i}" for i in range(self.count)) if j not in self.cluster.ended]
        return data.draw(st.sampled_from(live)) if live else None

    @rule(
        least=st.integers(1, 3), more=st.integers(0, 2), priority=st.integers(0, 1), held=st.booleans(),
        preemptible=st.booleans(), on=st.sampled_from([(), ("gpu",), ("big",)]), after=st.booleans(),
        job_type=st.sampled_from(["", "light", *TYPES]), shareable=st.booleans(), memory=st.integers(0, 8),
    )  # fmt: skip
    def submit(self, least, more, priority, held, preemptible, on, after, job_type, shareable, memory):
        before = (f"j{self.count - 1}",) if after and self.count else ()
        job = Job(
            f"j{self.count}", min_gpus=least, max_gpus=least + more, priority=priority, held=held,
            preemptible=preemptible, gpu_types=on, after=before, sweep="s", job_type=job_type, shareable=shareable,
            gpu_memory_bytes=memory if self.memory_bytes else 0,
        )  # fmt: skip
        try:
            self.cluster.submit(job)
        except TierlineError:
            return
        self.count += 1

    @rule(seconds=st.floats(0.1, 400))
    def time_passes(self, seconds):
        self.cluster.advance(seconds)

    @rule(data=st.data(), loss=st.one_of(st.none(), st.floats(-5, 5), st.just(1e9)), step=st.integers(0, 50))
    def report(self, data, loss, step):
        if self.cluster.running:
            self.cluster.report(data.draw(st.sampled_from(sorted(self.cluster.running))), step, loss)

    @rule(data=st.data(), outcome=st.sampled_from(["completed", "failed", "lost"]))
    def job_ends(self, data, outcome):
        if self.cluster.running:
            self.cluster.exit(data.draw(st.sampled_from(sorted(self.cluster.running))), outcome, "by itself")

    @rule(data=st.data(), what=st.sampled_from([JobHeld, JobReleased, StopRequested]))
    def user_acts(self, data, what):
        job_id = self._live(data)
        if job_id is not None:
            event = what(job_id, "ann")
            try:
                self.cluster.scheduler.check([event])
            except TierlineError:
                return
            self.cluster.send(event)

    @rule(data=st.data())
    def stale_exit(self, data):
        job_id = self._live(data)
        if job_id is not None and job_id not in self.cluster.running:
            stale = JobExited(job_id, 0, "failed", "x")
            assert self.cluster.scheduler.handle(self.cluster.now_ns, stale) == []

    @rule(which=st.integers(0, 1))
    def node_comes_or_goes(self, which):
        each = self.nodes[which]
        if each.name in self.lost:
            self.lost.discard(each.name)
            self.cluster.send(NodeJoined(each))
            return
        self.lost.add(each.name)
        ids = {d.device_id for d in each.devices}
        for job_id in [j for j, s in self.cluster.running.items() if ids & set(s.device_ids)]:
            del self.cluster.running[job_id]
            self.cluster.leaving.pop(job_id, None)
        for device_id in ids:
            self.cluster.devices.pop(device_id)
        self.cluster.send(NodeLost(each.name, "test"))

    @rule(blocked=st.sets(st.sampled_from(["a/0", "a/1"])))
    def somebody_else_uses_a_gpu(self, blocked):
        self.cluster.send(DevicesBlocked("a", tuple(sorted(blocked)), "not ours"))

    @invariant()
    def no_device_is_free_while_an_admissible_job_waits(self):
        assert waits_in_vain(self.cluster) == []

    @invariant()
    def books_agree_with_the_outside(self):
        statuses = {s.job_id: s for s in self.cluster.scheduler.statuses(self.cluster.now_ns)}
        holding = {j: s.device_ids for j, s in statuses.items() if Phase[s.phase.upper()].holds_devices}
        assert holding == {j: s.device_ids for j, s in self.cluster.running.items()}
        assert {j for j, s in statuses.items() if Phase[s.phase.upper()].is_terminal} == set(self.cluster.ended)
        assert len(statuses) == self.count  # nothing accepted is ever lost

    @invariant()
    def attempts_to_recover_are_those_that_run(self):
        assert {a.job_id for a in self.cluster.scheduler.attempts()} == set(self.cluster.running)


@dataclass(frozen=True)
class Reckless:
    """A packing stage that proposes whatever comes to its mind: the limits are the scheduler's to keep."""

    def plan(self, policy, view, rng):
        jobs, plan = view.jobs, policy.plan(without_guests(view, view.sharing), rng)
        granted = {grant.row for grant in plan.grants}
        grants = list(plan.grants)
        for guest in view.sharing.pairs[:, 1].tolist():
            if guest not in granted and rng.random() < 0.1:
                grants.append(Grant(guest, 0, int(jobs.gpu_type[guest]), "a whim"))
        hosts = [row for row in range(len(jobs)) if jobs.running[row]]
        for row in range(len(jobs)):
            if row not in granted and jobs.eligible[row] and not jobs.running[row] and jobs.preemptible[row] and hosts:
                onto = tuple(dict.fromkeys(rng.choices(hosts, k=rng.randint(1, 2))))
                grants.append(Grant(row, int(jobs.min_gpus[row]), int(jobs.gpu_type[onto[0]]), "a whim", onto=onto))
        return replace(plan, grants=tuple(grants))


class SharedJobTier(JobTier):
    """The same with two jobs on a device. The fake cluster asserts at every start: never more than two, only shareable
    jobs, memory within the device; so it fails on the first guest that the scheduler should have refused."""

    memory_bytes = 10

    @initialize(policy=POLICIES, answer=st.booleans(), packing=st.sampled_from([GainPacking(), Reckless()]))
    def start(self, policy, answer, packing):
        self.packing = packing
        self.begin(policy, answer)

    def crowd(self):
        self.cluster.send(PairsMeasured(PAIRS))
        for number in range(12):
            job_type, shareable = TYPES[number % 2], number % 5 > 0
            job = Job(f"j{number}", job_type=job_type, gpu_memory_bytes=3 + number % 4, sweep="s", shareable=shareable)
            self.cluster.submit(job)
        self.count = 12

    @rule(data=st.data(), speed=st.floats(0, 1))
    def slowdown(self, data, speed):
        sharing = [s for s in self.cluster.scheduler.statuses(self.cluster.now_ns) if s.shares_with]
        if sharing:
            one = data.draw(st.sampled_from(sharing))
            self.cluster.send(SlowdownSeen(one.job_id, one.attempt, one.shares_with, speed, 10**10))

    @invariant()
    def nobody_is_alone_in_a_pair_and_charges_add_up(self):
        users = {}
        for job_id, start in self.cluster.running.items():
            for device_id in start.device_ids:
                users.setdefault(device_id, set()).add(job_id)
        statuses = {s.job_id: s for s in self.cluster.scheduler.statuses(self.cluster.now_ns)}
        for job_id, start in self.cluster.running.items():
            beside = set().union(*(users[d] for d in start.device_ids)) - {job_id}
            assert set(statuses[job_id].shares_with) == beside
        shown = {d.device_id: {d.job_id, d.guest} - {""} for d in self.cluster.scheduler.cluster(0).devices}
        assert {d: jobs for d, jobs in shown.items() if jobs} == {d: u for d, u in users.items() if d in shown}
        assert all(s.attained_gpu_s >= 0 for s in statuses.values())

    @invariant()
    def a_snapshot_holds_pairs_and_beliefs(self):
        state = self.cluster.scheduler.dump()
        copy = JobScheduler(make_policy(self.policy), self.cluster.scheduler.options, self.packing)
        copy.load(state)
        assert copy.dump() == state


for machine in (JobTier, SharedJobTier):
    machine.TestCase.settings = settings(
        max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
TestJobTier = JobTier.TestCase
TestSharedJobTier = SharedJobTier.TestCase
