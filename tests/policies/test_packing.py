"""The packing stage as a pure function of a view and a plan."""

import random
from dataclasses import replace

import numpy as np
import pytest

from tierline.core.events import PairsMeasured, SlowdownSeen
from tierline.core.nouns import Job, PairSpeed
from tierline.core.views import Grant, Plan
from tierline.policies.jobs.packing import GainPacking, without_guests
from tierline.testing.jobs import FakeCluster, node

NAMES = "abcd"


def pairs(**speeds):
    """`ab=0.7`: a runs at 0.7 beside b; the rest is 0.9."""
    return tuple(PairSpeed("", x, y, speeds.get(x + y, 0.9)) for x in NAMES for y in NAMES)


class Fixed:
    """A policy that refuses everybody who waits, in a given order, and bids given densities."""

    preemptive, needs_forecast, needs_curves, work_conserving = True, False, False, True

    def __init__(self, density=None, refused=None, grants=()):
        self.answer = Plan(
            grants=tuple(grants), density=None if density is None else np.array(density, dtype=float),
            refused=None if refused is None else np.array(refused, dtype=np.int64),
        )  # fmt: skip
        self.seen = None

    def plan(self, view, rng):
        self.seen = view
        return self.answer


def view_of(hosts, guests=(), waiting=(), speeds=(), gpus=None, ran=()):
    """Hosts on a device each, guests (job, host) on theirs, others waiting; a letter is a job and its kind."""
    cluster = FakeCluster("fifo", [node("n", gpus or len(hosts))], packing=GainPacking())
    cluster.submit(*(Job(f"host{row}", job_type=kind) for row, kind in enumerate(hosts)))
    cluster.send(PairsMeasured(speeds or pairs()))
    for number, (guest, host) in enumerate(guests):
        cluster.scheduler.packing = Onto(list(hosts).index(host), len(hosts) + number)
        cluster.submit(Job(f"{guest}guest", job_type=guest))
    cluster.scheduler.packing = Onto(-1, -1)
    cluster.submit(*(Job(f"{w}{n}", job_type=w) for n, w in enumerate(waiting)))
    view = cluster.scheduler.view(cluster.now_ns, may_preempt=True)
    attained = view.jobs.attained_gpu_ns.copy()
    attained[list(ran)] = 10**12
    return replace(view, jobs=replace(view.jobs, attained_gpu_ns=attained)), cluster


class Onto:
    """A stage that makes one pair."""

    def __init__(self, host, guest):
        self.host, self.guest = host, guest

    def plan(self, policy, view, rng):
        plan = policy.plan(without_guests(view, view.sharing), rng)
        grant = Grant(self.guest, 1, 0, "test", onto=(self.host,))
        return replace(plan, grants=(*plan.grants, grant) if self.guest >= 0 else plan.grants)


def packed(view, policy):
    return GainPacking().plan(policy, view, random.Random(0)).grants


def test_each_takes_the_host_where_it_gains_most_in_the_policys_order():
    view, _ = view_of("ab", waiting="cd", speeds=pairs(ca=0.9, ac=0.9, cb=0.6, bc=0.6, da=1.0, ad=1.0))
    assert [(g.row, g.onto) for g in packed(view, Fixed(refused=[3, 2]))] == [(3, (0,)), (2, (1,))]
    assert [(g.row, g.onto) for g in packed(view, Fixed(refused=[2, 3]))] == [(2, (0,)), (3, (1,))]


def test_the_gain_is_that_of_the_formula_and_stands_in_the_reason():
    view, _ = view_of("a", waiting="c", speeds=pairs(ca=0.8, ac=0.7))
    (grant,) = packed(view, Fixed(density=[0.010, 0.005], refused=[1]))
    gain = 0.005 * 0.8 - 0.010 * (1 - 0.7)
    assert grant.reason == f"predicted speed 0.80 and 0.70; gain {gain:.3g} utility/GPU-s"
    assert packed(view, Fixed(density=[0.014, 0.005], refused=[1])) == ()  # 0.0040 - 0.0042


def test_a_job_that_must_load_its_checkpoint_needs_a_gain_above_its_restart():
    speeds = pairs(ca=0.55, ac=0.5)
    view, _ = view_of("a", waiting="c", speeds=speeds)
    assert len(packed(view, Fixed(refused=[1]))) == 1  # the speeds add up to 1.05
    view, _ = view_of("a", waiting="c", speeds=speeds, ran=[1])
    assert packed(view, Fixed(refused=[1])) == ()  # a restart of 30 s in 300 s needs 1.1


def test_guests_are_hidden_from_the_policy():
    view, _ = view_of("a", guests=["ca"], waiting="d")
    policy = Fixed(refused=[2])
    packed(view, policy)
    assert view.jobs.running.tolist() == [True, True, False]
    assert policy.seen.jobs.running.tolist() == [True, False, False]
    assert policy.seen.jobs.eligible.tolist() == [True, False, True]
    assert view.sharing.pairs.tolist() == [[0, 1, 1]]


def test_a_better_bid_takes_a_guests_place_at_a_quantum_only():
    view, _ = view_of("a", guests=["ca"], waiting="d")
    bids = [0.001, 0.001, 0.1]
    (leaves,) = packed(view, Fixed(density=bids, refused=[2]))
    assert (leaves.row, leaves.gpus, leaves.reason) == (1, 0, "no longer shares with host0: d0 gains more there")
    assert packed(replace(view, may_preempt=False), Fixed(density=bids, refused=[2])) == ()
    assert packed(view, Fixed(density=[0.001, 0.001, 0.00125], refused=[2])) == ()  # within `keep`
    assert packed(view, Fixed(refused=[2])) == ()  # a policy without bids cannot tell


def test_the_heir_of_a_device_that_others_bid_more_for_leaves_with_its_host():
    view, _ = view_of("a", guests=["ca"], waiting="d")
    swap = [Grant(0, 0, 0, "outbid"), Grant(2, 1, 0, "in its place")]
    rows = [g.row for g in packed(view, Fixed(density=[0.001, 0.001, 0.1], refused=[], grants=swap))]
    assert rows == [0, 2, 1]
    rows = [g.row for g in packed(view, Fixed(density=[0.001, 0.09, 0.1], refused=[], grants=swap))]
    assert rows == [0, 2]
    rows = [g.row for g in packed(view, Fixed(refused=[], grants=swap))]
    assert rows == [0, 2]


def test_a_job_that_starts_in_this_round_may_be_a_host():
    view, _ = view_of("a", waiting="bc", gpus=1)
    view = replace(view, free=np.array([1]))
    grants = packed(view, Fixed(refused=[2], grants=[Grant(1, 1, 0, "start")]))
    assert (grants[-1].row, grants[-1].onto) in [(2, (0,)), (2, (1,))]


def test_a_bad_pair_is_told_with_what_was_seen():
    view, cluster = view_of("a", guests=["ca"])
    for job_id in ("host0", "cguest"):
        status = cluster.scheduler.status(job_id, 0)
        for _ in range(4):
            cluster.scheduler.handle(0, SlowdownSeen(job_id, 1, status.shares_with, 0.2, 10**9))
    view = cluster.scheduler.view(0, may_preempt=False)
    (leaves,) = packed(view, Fixed())
    assert (leaves.row, leaves.gpus) == (1, 0)
    assert leaves.reason.startswith("no longer shares with host0: speed 0.28 and 0.28 by now; gain -0.44")


@pytest.mark.parametrize("seed", range(20))
def test_the_stage_never_proposes_what_the_limits_forbid(seed):
    """Random views: every place is used once, by somebody who may, and the plan of the policy is left as it is."""
    rng = random.Random(seed)
    speeds = pairs(**{x + y: rng.random() for x in NAMES for y in NAMES})
    hosts = [rng.choice(NAMES) for _ in range(6)]
    view, _ = view_of(hosts, waiting=[rng.choice(NAMES) for _ in range(8)], speeds=speeds, ran=range(6, 10))
    density = [rng.random() for _ in range(14)] if seed % 2 else None
    grants = packed(view, Fixed(density=density, refused=rng.sample(range(6, 14), 8)))
    taken = [g.onto[0] for g in grants]
    assert len(set(taken)) == len(taken)
    for grant in grants:
        host, kinds = grant.onto[0], view.sharing.job_type
        mine = view.sharing.speed[0, kinds[grant.row], kinds[host]]
        theirs = view.sharing.speed[0, kinds[host], kinds[grant.row]]
        worth = (1.0, 1.0) if density is None else (density[grant.row], density[host])
        assert worth[0] * mine - worth[1] * (1 - theirs) > 0
