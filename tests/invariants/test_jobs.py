"""Named invariants of the job tier under random events (docs/invariants.md). FakeCluster asserts the hard limits."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tierline.core.errors import TierlineError
from tierline.core.events import DevicesBlocked, JobExited, JobHeld, JobReleased, NodeJoined, NodeLost, StopRequested
from tierline.core.nouns import Job, Phase
from tierline.testing.jobs import FakeCluster, node
from tierline.testing.policies import waits_in_vain

POLICIES = st.sampled_from(["explsched", "fifo", "fair", "las", "slaq", "gandiva", "asha", "srtf", "optimus"])


class JobTier(RuleBasedStateMachine):
    """Users, nodes and jobs do what they like; the scheduler keeps its promises."""

    @initialize(policy=POLICIES, answer=st.booleans())
    def start(self, policy, answer):
        self.nodes = [node("a", 4), node("b", 2, "big")]
        self.cluster = FakeCluster(policy, self.nodes, answer_preemptions=answer)
        self.lost = set()
        self.count = 0

    def _live(self, data):
        live = [j for j in (f"j{i}" for i in range(self.count)) if j not in self.cluster.ended]
        return data.draw(st.sampled_from(live)) if live else None

    @rule(
        least=st.integers(1, 3), more=st.integers(0, 2), priority=st.integers(0, 1), held=st.booleans(),
        preemptible=st.booleans(), on=st.sampled_from([(), ("gpu",), ("big",)]), after=st.booleans(),
    )  # fmt: skip
    def submit(self, least, more, priority, held, preemptible, on, after):
        before = (f"j{self.count - 1}",) if after and self.count else ()
        job = Job(
            f"j{self.count}", min_gpus=least, max_gpus=least + more, priority=priority, held=held,
            preemptible=preemptible, gpu_types=on, after=before, sweep="s",
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


JobTier.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestJobTier = JobTier.TestCase
