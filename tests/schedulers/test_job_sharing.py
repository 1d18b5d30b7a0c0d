"""Two jobs on one device: who may, who leaves, who pays; old records still load."""

import json

import pytest

from tierline.core.actions import PreemptJob, RecordRefusal, StartJob
from tierline.core.events import (
    DevicesBlocked,
    JobExited,
    NodeLost,
    PairsMeasured,
    SlowdownSeen,
    StopRequested,
    TimerFired,
)
from tierline.core.nouns import Job, PairSpeed
from tierline.policies.jobs import make_policy
from tierline.policies.jobs.packing import GainPacking
from tierline.schedulers.jobs import JobScheduler, JobSchedulerOptions
from tierline.testing.jobs import FakeCluster, node

GOOD = (
    PairSpeed("", "a", "a", 0.8), PairSpeed("", "a", "b", 0.9), PairSpeed("", "b", "a", 0.7), PairSpeed("", "b", "b", 0.3),
    PairSpeed("", "a", "c", 0.0), PairSpeed("", "c", "a", 0.0),
)  # fmt: skip


def cluster_of(gpus=1, policy="fifo", pairs=GOOD, packing=GainPacking(), memory_bytes=0, **options):
    cluster = FakeCluster(
        policy, [node("n", gpus, memory_bytes=memory_bytes)], JobSchedulerOptions(**options), packing=packing
    )
    cluster.send(PairsMeasured(pairs))
    return cluster


def job(job_id, job_type="a", **more):
    return Job(job_id, job_type=job_type, **more)


def starts(actions):
    return [a for a in actions if isinstance(a, StartJob)]


def preempted(actions):
    return [(a.job_id, a.reason) for a in actions if isinstance(a, PreemptJob)]


def status(cluster, job_id):
    return cluster.scheduler.status(job_id, cluster.now_ns)


def slowdown(cluster, job_id, speed):
    now = status(cluster, job_id)
    return cluster.send(SlowdownSeen(job_id, now.attempt, now.shares_with, speed, 60 * 10**9))


def test_a_second_job_joins_the_first_and_says_so_in_plain_words():
    cluster = cluster_of()
    first, second = starts(cluster.submit(job("r", "a"), job("j", "b")))
    assert (first.device_ids, first.shares_with) == (("n/0",), ())
    assert second == StartJob(
        "j", 1, ("n/0",), False, "shares n/0 with r: predicted speed 0.70 and 0.90; gain 0.6 of a device",
        shares_with=("r",),
    )  # fmt: skip
    assert (status(cluster, "j").shares_with, status(cluster, "j").speed) == (("r",), 0.7)
    assert (status(cluster, "r").shares_with, status(cluster, "r").speed) == (("j",), 0.9)
    (device,) = cluster.scheduler.cluster(0).devices
    assert (device.job_id, device.guest) == ("r", "j")


def test_without_sharing_the_same_jobs_wait():
    cluster = cluster_of(packing=None)
    assert [s.job_id for s in starts(cluster.submit(job("r"), job("j")))] == ["r"]


def test_never_more_than_two_and_a_third_waits():
    cluster = cluster_of()
    cluster.submit(job("r"), job("j"), job("k"))
    assert set(cluster.running) == {"r", "j"}


@pytest.mark.parametrize(
    ("resident", "candidate"),
    [
        ({}, {"shareable": False}),
        ({"shareable": False}, {}),
        ({}, {"preemptible": False}),
        ({}, {"job_type": ""}),
        ({}, {"job_type": "unheard of"}),
        ({}, {"job_type": "c"}),
        ({"priority": 1}, {}),
    ],
)
def test_who_does_not_fit_waits(resident, candidate):
    cluster = cluster_of()
    cluster.submit(job("r", **resident))
    assert starts(cluster.submit(job("j", **{"job_type": "a"} | candidate))) == []


def test_memory_of_both_must_fit_and_who_declares_none_needs_all():
    cluster = cluster_of(memory_bytes=10)
    cluster.submit(job("r", gpu_memory_bytes=6))
    assert starts(cluster.submit(job("big", gpu_memory_bytes=5), job("mute"))) == []
    assert [s.job_id for s in starts(cluster.submit(job("small", gpu_memory_bytes=4)))] == ["small"]


def test_a_pair_whose_speeds_add_up_to_less_than_one_is_not_made():
    cluster = cluster_of()
    cluster.submit(job("r", "b"))
    assert starts(cluster.submit(job("j", "b"))) == []


def test_exit_of_one_leaves_the_other_and_the_guest_becomes_the_owner():
    cluster = cluster_of()
    cluster.submit(job("r"), job("j"))
    cluster.exit("r")
    (device,) = cluster.scheduler.cluster(0).devices
    assert (device.job_id, device.guest, status(cluster, "j").shares_with) == ("j", "", ())
    assert [s.shares_with for s in starts(cluster.submit(job("k")))] == [("j",)]
    cluster.exit("k")
    assert set(cluster.running) == {"j"}
    cluster.exit("j")
    assert cluster.free == {"n/0"}
    assert starts(cluster.submit(job("last")))[0].shares_with == ()


def test_a_device_is_charged_at_half_to_each_while_it_is_shared():
    cluster = cluster_of()
    cluster.submit(job("r"))
    cluster.advance(100)
    cluster.submit(job("j"))
    cluster.advance(60)
    assert (status(cluster, "r").attained_gpu_s, status(cluster, "j").attained_gpu_s) == (130.0, 30.0)
    cluster.exit("j")
    cluster.advance(40)
    assert (status(cluster, "r").attained_gpu_s, status(cluster, "j").attained_gpu_s) == (170.0, 30.0)
    view = cluster.scheduler.view(cluster.now_ns, may_preempt=True)
    assert view.jobs.attained_gpu_ns[0] == 170 * 10**9
    assert 170.0 + 30.0 == 200.0  # what the device was held


def test_a_lost_node_takes_both():
    cluster = cluster_of()
    cluster.submit(job("r"), job("j"))
    cluster.running.clear()
    cluster.devices.clear()
    cluster.send(NodeLost("n", "test"))
    assert {status(cluster, j).phase for j in ("r", "j")} == {"queued"}
    assert all(status(cluster, j).shares_with == () for j in ("r", "j"))


def test_a_blocked_device_takes_no_guest():
    cluster = cluster_of()
    cluster.submit(job("r"))
    cluster.send(DevicesBlocked("n", ("n/0",), "others"))
    cluster.submit(job("j"))
    assert set(cluster.running) == {"r"}
    assert not [a for a in cluster.actions if isinstance(a, RecordRefusal)]


def test_a_slowdown_that_breaks_the_prediction_has_the_guest_leave_and_stay_away():
    cluster = cluster_of()
    cluster.submit(job("r"), job("j"))
    assert preempted(slowdown(cluster, "r", 0.75)) == []  # 0.77 and 0.8 still gain
    actions = slowdown(cluster, "j", 0.05) + slowdown(cluster, "r", 0.3)
    assert [who for who, _ in preempted(actions)] == ["j"]
    assert "no longer shares with r: speed 0." in preempted(actions)[0][1]
    assert set(cluster.running) == {"r"}
    assert starts(cluster.submit(job("k"))) == []  # the kind is known to be bad now
    cluster.exit("r")
    assert set(cluster.running) == {"j"} and not cluster.running["j"].shares_with


def test_a_pair_is_kept_while_its_loss_is_less_than_the_restart():
    """Restart 30 s in five quanta of 60 s: it must lose more than a tenth of the guest's worth before it is undone."""
    cluster = cluster_of(pairs=(PairSpeed("", "a", "a", 0.6),))
    cluster.submit(job("r"), job("j"))
    for _ in range(20):
        actions = slowdown(cluster, "j", 0.47) + slowdown(cluster, "r", 0.47)
        assert preempted(actions) == []
    for _ in range(30):
        slowdown(cluster, "j", 0.4)
        slowdown(cluster, "r", 0.4)
    assert set(cluster.running) == {"r"}


def test_what_was_seen_of_an_earlier_attempt_or_by_nobody_is_ignored():
    cluster = cluster_of()
    cluster.submit(job("r"), job("j"))
    before = cluster.scheduler.dump()["interference"]
    cluster.send(SlowdownSeen("j", 7, ("r",), 0.1, 1), SlowdownSeen("nobody", 1, ("r",), 0.1, 1))
    cluster.send(SlowdownSeen("j", 1, ("nobody",), 0.1, 1))
    assert cluster.scheduler.dump()["interference"] == before


def test_a_guest_moves_to_a_device_that_nobody_else_wants():
    cluster = cluster_of(gpus=2)
    cluster.submit(job("x", shareable=False), job("r"), job("j"))
    assert cluster.running["j"].shares_with == ("r",)
    actions = cluster.exit("x")
    assert preempted(actions) == [("j", "no longer shares with r: a device of its own is free")]
    (again,) = starts(actions)
    assert (again.job_id, again.attempt, again.device_ids, again.shares_with) == ("j", 2, ("n/0",), ())


def test_a_guest_does_not_move_for_less_than_its_restart():
    cluster = cluster_of(gpus=2, pairs=(PairSpeed("", "a", "a", 0.97),))
    cluster.submit(job("x", shareable=False), job("r"), job("j"))
    assert preempted(cluster.exit("x")) == []
    assert cluster.running["j"].shares_with == ("r",)


def test_a_guest_does_not_move_while_somebody_waits_for_the_device():
    cluster = cluster_of(gpus=2)
    cluster.submit(job("x", shareable=False), job("r"), job("j"), job("solo", shareable=False))
    assert cluster.running["j"].shares_with == ("r",)
    actions = cluster.exit("x")
    assert [s.job_id for s in starts(actions)] == ["solo"]
    assert preempted(actions) == []


def test_a_guest_that_is_leaving_still_holds_its_place_until_it_has_left():
    cluster = cluster_of()
    cluster.answer_preemptions = False
    cluster.submit(job("r"), job("j"), job("k"))
    cluster.send(StopRequested("j", "ann"))
    cluster.advance(1)
    assert "k" not in cluster.running
    cluster.exit("j")
    assert cluster.running["k"].shares_with == ("r",)


def test_a_host_that_is_leaving_takes_no_guest():
    cluster = cluster_of()
    cluster.answer_preemptions = False
    cluster.submit(job("r"))
    cluster.send(StopRequested("r", "ann"))
    assert starts(cluster.submit(job("j"))) == []
    cluster.exit("r")
    assert cluster.running["j"].shares_with == ()


def test_a_gang_shares_with_a_gang_and_is_as_slow_as_its_slowest_pair():
    cluster = cluster_of(gpus=2)
    cluster.submit(Job("r", job_type="a", min_gpus=2, max_gpus=2))
    actions = starts(cluster.submit(Job("one", job_type="a"), Job("two", job_type="b")))
    assert [s.device_ids for s in actions] == [("n/0",), ("n/1",)]
    assert status(cluster, "r").shares_with == ("one", "two")
    assert status(cluster, "r").speed == 0.8  # 0.8 beside one, 0.9 beside two
    cluster.exit("one")
    assert status(cluster, "r").speed == 0.9
    cluster.exit("two")
    (both,) = starts(cluster.submit(Job("gang", job_type="b", min_gpus=2, max_gpus=2)))
    assert (both.device_ids, both.shares_with) == (("n/0", "n/1"), ("r",))


def test_a_gang_may_share_with_several_jobs():
    cluster = cluster_of(gpus=2)
    cluster.submit(job("r1"), job("r2"))
    (gang,) = starts(cluster.submit(Job("gang", job_type="a", min_gpus=2, max_gpus=2)))
    assert (set(gang.device_ids), set(gang.shares_with)) == ({"n/0", "n/1"}, {"r1", "r2"})
    cluster.exit("r1")
    assert status(cluster, "gang").shares_with == ("r2",)


def test_a_snapshot_in_the_middle_of_a_pair_continues_bit_for_bit():
    cluster = cluster_of(gpus=2, policy="explsched")
    cluster.submit(job("r"), job("j", "b"), job("k"), job("l", "b"))
    cluster.advance(30)
    slowdown(cluster, next(j for j in cluster.running if status(cluster, j).shares_with), 0.6)
    copy = JobScheduler(make_policy("explsched"), cluster.scheduler.options, GainPacking())
    copy.load(json.loads(json.dumps(cluster.scheduler.dump())))
    assert copy.dump() == cluster.scheduler.dump()
    for event in (JobExited("r", 1, "completed", "done"), NodeLost("n", "test")):
        now = cluster.now_ns + 10**9
        assert copy.handle(now, event) == cluster.scheduler.handle(now, event)
    assert copy.dump() == cluster.scheduler.dump()
    assert [a.shares_with for a in copy.attempts()] == [a.shares_with for a in cluster.scheduler.attempts()]


def test_a_snapshot_of_a_version_before_sharing_still_loads():
    cluster = FakeCluster("fifo", [node("n", 1)])
    cluster.submit(Job("a"), Job("b"))
    state = cluster.scheduler.dump()
    for key in ("guests", "interference"):
        del state[key]
    for name in ("job_type", "memory_bytes", "shared", "shared_ns", "shareable"):
        del state["table"][name]
    for record in state["jobs"]:
        del record["shares_with"]
        for name in ("job_type", "sm_util", "bw_util", "shareable"):
            del record["job"][name]
    copy = JobScheduler(make_policy("fifo"))
    copy.load(state)
    for now, event in ((5, JobExited("a", 1, "completed", "done")), (5, TimerFired("fill"))):
        assert copy.handle(now, event) == cluster.scheduler.handle(now, event)
    assert copy.status("b", 5).phase == "starting"
    assert copy.dump() == cluster.scheduler.dump()
