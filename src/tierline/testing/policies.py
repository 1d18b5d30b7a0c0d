"""The contract that every job policy keeps. Subclass it, or run it over your own policy::

from tierline.testing.policies import JobPolicyContract

class TestMine(JobPolicyContract):
    def make(self): return MyPolicy()
"""

from __future__ import annotations

import random

import numpy as np

from tierline.core.actions import StartJob
from tierline.core.contracts import JobPolicy, Packing
from tierline.core.events import NodeLost, PairsMeasured, SlowdownSeen
from tierline.core.nouns import Job, PairSpeed
from tierline.policies.jobs.packing import GainPacking
from tierline.schedulers.jobs import JobScheduler
from tierline.testing.jobs import FakeCluster, node

TYPES = ("light", "heavy", "huge")
PAIRS = tuple(
    PairSpeed("", one, other, {"light": 0.95, "heavy": 0.6}[one] if "huge" not in (one, other) else 0.0)
    for one in TYPES
    for other in TYPES
    if one != "huge"
)
"""Measured pairs for tests: light and heavy jobs may share, and huge ones fit with nobody."""


def busy_cluster(policy: JobPolicy, seed: int, jobs: int = 30, packing: Packing | None = None) -> FakeCluster:
    """A cluster in the middle of some random life: gangs, elastic jobs, two GPU types, reports, ends, a lost node. With
    `packing` jobs of several types share devices, and slowdowns are seen."""
    rng = random.Random(seed)
    nodes = [node("a", 4, "v100"), node("b", 2, "h200"), node("c", 2, "v100")]
    cluster = FakeCluster(policy, nodes, packing=packing)
    if packing is not None:
        cluster.send(PairsMeasured(PAIRS))
    submitted = 0
    for _ in range(12):
        for _ in range(rng.randrange(jobs // 6)):
            least = rng.choice([1, 1, 1, 2])
            cluster.submit(
                Job(
                    f"job{submitted}",
                    user=rng.choice(["ann", "bob"]),
                    sweep=rng.choice(["s", "t", ""]),
                    min_gpus=least,
                    max_gpus=least + rng.choice([0, 0, 2]),
                    gpu_types=rng.choice([(), (), ("v100",)]),
                    total_steps=rng.choice([0, 20]),
                    priority=rng.choice([0, 0, 1]),
                    preemptible=rng.random() < 0.8,
                    params=(("lr", rng.random()),),
                    job_type="" if packing is None else rng.choice(["", *TYPES, "light"]),
                    shareable=packing is None or rng.random() < 0.9,
                )
            )
            submitted += 1
        for _ in range(rng.randrange(4)):
            cluster.advance(rng.uniform(1, 50))
            for job_id in list(cluster.running):
                if rng.random() < 0.7:
                    step = cluster.scheduler.status(job_id, cluster.now_ns).step
                    loss = rng.choice([None, 1e9, rng.uniform(0, 2), rng.uniform(0, 1)])
                    cluster.report(job_id, 0 if step is None else step + 1, loss)
            if packing is not None:
                slow_down(cluster, rng)
        if cluster.running and rng.random() < 0.5:
            cluster.exit(rng.choice(list(cluster.running)))
    return cluster


def slow_down(cluster: FakeCluster, rng: random.Random) -> None:
    """Somebody who shares a device is seen at some speed."""
    sharing = [s for s in cluster.scheduler.statuses(cluster.now_ns) if s.shares_with]
    if sharing:
        one = rng.choice(sharing)
        speed = rng.choice([0.2, rng.random(), 1.0])
        cluster.send(SlowdownSeen(one.job_id, one.attempt, one.shares_with, speed, 10**10))


def waits_in_vain(cluster: FakeCluster) -> list[str]:
    """Eligible jobs that would fit on devices free right now. Empty for a work-conserving policy after its rounds."""
    view = cluster.scheduler.view(cluster.now_ns, may_preempt=False)
    jobs = view.jobs
    return [
        jobs.job_id[row]
        for row in np.flatnonzero(jobs.eligible & ~jobs.running)
        if ((view.free >= jobs.min_gpus[row]) & (jobs.type_speed[row] > 0)).any()
    ]


class JobPolicyContract:
    """Mix into a test class that defines `make`."""

    def make(self) -> JobPolicy:
        raise NotImplementedError("return a fresh policy")  # the one abstract method of the suite

    def test_docstring_names_idea_source_inputs_memory_cost(self) -> None:
        text = type(self.make()).__doc__ or ""
        missing = [word for word in ("Idea:", "Source:", "Inputs:", "Memory:", "Cost:") if word not in text]
        assert not missing

    def test_hard_limits_hold_through_a_random_life(self) -> None:
        for seed in range(5):
            cluster = busy_cluster(self.make(), seed)  # FakeCluster asserts on every action
            assert len(cluster.running) + len(cluster.ended) > 0

    def test_no_device_idles_while_a_job_fits(self) -> None:
        policy = self.make()
        if not policy.work_conserving:
            return
        for seed in range(5):
            assert waits_in_vain(busy_cluster(self.make(), seed)) == []

    def test_limits_hold_and_no_device_idles_where_devices_are_shared(self) -> None:
        shared = 0
        for seed in range(5):
            cluster = busy_cluster(self.make(), seed, packing=GainPacking())
            shared += sum(isinstance(action, StartJob) and bool(action.shares_with) for action in cluster.actions)
            if self.make().work_conserving:
                assert waits_in_vain(cluster) == []
            again = JobScheduler(self.make(), cluster.scheduler.options, GainPacking())
            for now, event, actions in cluster.recorded:
                assert again.handle(now, event) == actions
        assert shared > 0

    def test_same_events_same_actions(self) -> None:
        cluster = busy_cluster(self.make(), 7)
        again = JobScheduler(self.make(), cluster.scheduler.options)
        assert [again.handle(now, event) for now, event, _ in cluster.recorded] == [a for _, _, a in cluster.recorded]

    def test_the_view_is_read_only_and_an_empty_cluster_needs_nothing(self) -> None:
        cluster = busy_cluster(self.make(), 3)
        view = cluster.scheduler.view(cluster.now_ns, may_preempt=True)
        assert not view.jobs.arrival_ns.flags.writeable
        assert not view.jobs.gpus.flags.writeable
        empty = FakeCluster(self.make(), [node("a", 1)])
        assert self.make().plan(empty.scheduler.view(0, may_preempt=True), random.Random(0)).grants == ()

    def test_a_snapshot_holds_the_policys_memory(self) -> None:
        cluster = busy_cluster(self.make(), 11)
        copy = JobScheduler(self.make(), cluster.scheduler.options)
        copy.load(cluster.scheduler.dump())
        event = NodeLost("b", "test")
        now = cluster.now_ns + 1
        assert copy.handle(now, event) == cluster.scheduler.handle(now, event)
        assert copy.dump() == cluster.scheduler.dump()
