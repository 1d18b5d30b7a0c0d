"""The job scheduler as a pure machine: events in, action lists out."""

import pytest

from tierline.core.actions import PreemptJob, RecordEnd, SetTimer, StartJob, StopJob
from tierline.core.errors import InvalidInput, NotFound
from tierline.core.events import (
    DevicesBlocked,
    JobExited,
    JobHeld,
    JobReleased,
    JobSubmitted,
    NodeJoined,
    NodeLost,
    SharesSet,
    StopRequested,
    SweepDeclared,
)
from tierline.core.nouns import NS_PER_S, Job, Sweep
from tierline.schedulers.jobs import JobScheduler, JobSchedulerOptions
from tierline.testing.jobs import FakeCluster, node


def started(actions):
    return [a.job_id for a in actions if isinstance(a, StartJob)]


def phase(cluster, job_id):
    return cluster.scheduler.status(job_id, cluster.now_ns).phase


def test_a_job_starts_on_a_free_device_and_ends():
    cluster = FakeCluster("fifo", [node("n", 2)])
    actions = cluster.submit(Job("a"))
    assert actions[0] == SetTimer("fill", 0)
    assert actions[1] == StartJob("a", 1, ("n/0",), resume=False, reason="next in line")
    assert phase(cluster, "a") == "running"
    assert cluster.exit("a") == [RecordEnd("a", "completed", "done")]
    assert cluster.free == {"n/0", "n/1"}
    assert phase(cluster, "a") == "completed"


def test_fifo_starts_in_order_and_backfills_what_does_not_fit():
    cluster = FakeCluster("fifo", [node("n", 4)])
    actions = cluster.submit(Job("a", min_gpus=3, max_gpus=3), Job("b", min_gpus=2, max_gpus=2), Job("c"))
    assert started(actions) == ["a", "c"]
    assert started(cluster.exit("a")) == ["b"]


def test_priority_comes_before_order():
    cluster = FakeCluster("fifo", [node("n", 1)])
    cluster.submit(Job("a"))
    cluster.submit(Job("b"), Job("c", priority=5))
    assert started(cluster.exit("a")) == ["c"]


def test_dependencies_wait_and_fall_with_a_failed_one():
    cluster = FakeCluster("fifo", [node("n", 2)])
    cluster.submit(Job("a"), Job("b", after=("a",)), Job("c", after=("b",)))
    assert phase(cluster, "b") == "waiting"
    assert started(cluster.exit("a")) == ["b"]
    actions = cluster.exit("b", "failed", "exit code 1")
    assert [a for a in actions if isinstance(a, RecordEnd)] == [
        RecordEnd("b", "failed", "exit code 1"),
        RecordEnd("c", "stopped", "its dependency b has failed"),
    ]


def test_hold_takes_a_running_job_off_its_device_and_release_queues_it_again():
    cluster = FakeCluster("fifo", [node("n", 1)])
    cluster.submit(Job("a"), Job("b"))
    actions = cluster.send(JobHeld("a", by="ann"))
    assert PreemptJob("a", 1, "held by ann") in actions
    assert started(actions) == ["b"]
    assert phase(cluster, "a") == "held"
    cluster.exit("b")
    resumed = [a for a in cluster.send(JobReleased("a", by="ann")) if isinstance(a, StartJob)]
    assert resumed[0].attempt == 2
    assert resumed[0].resume


def test_held_at_submission_does_not_start():
    cluster = FakeCluster("fifo", [node("n", 1)])
    assert started(cluster.submit(Job("a", held=True))) == []
    assert started(cluster.send(JobReleased("a", by="ann"))) == ["a"]


def test_stop_of_a_queued_and_of_a_running_job():
    cluster = FakeCluster("fifo", [node("n", 1)])
    cluster.submit(Job("a"), Job("b"))
    assert cluster.send(StopRequested("b", by="ann")) == [RecordEnd("b", "stopped", "stopped by its user (ann)")]
    actions = cluster.send(StopRequested("a", by="ann"))
    assert actions[0] == StopJob("a", 1, "stopped by its user (ann)")
    assert cluster.ended == {"a": "stopped", "b": "stopped"}


def test_an_exit_that_crossed_a_stop_counts_as_completed():
    cluster = FakeCluster("fifo", [node("n", 1)], answer_preemptions=False)
    cluster.submit(Job("a"))
    cluster.send(StopRequested("a", by="ann"))
    cluster.send(JobExited("a", 1, "completed", "done"))
    assert cluster.ended == {"a": "completed"}


def test_devices_of_a_preempted_job_are_given_on_only_once_it_has_left():
    cluster = FakeCluster("las", [node("n", 1)], answer_preemptions=False)
    cluster.submit(Job("a"))
    cluster.advance(1000)
    actions = cluster.submit(Job("b")) + cluster.advance(60)
    assert [a for a in actions if isinstance(a, PreemptJob)]
    assert started(actions) == []
    assert phase(cluster, "a") == "releasing"
    assert started(cluster.exit("a")) == ["b"]


def test_a_job_that_is_not_preemptible_stays():
    cluster = FakeCluster("las", [node("n", 1)])
    cluster.submit(Job("a", preemptible=False))
    cluster.advance(1000)
    actions = cluster.submit(Job("b")) + cluster.advance(300)
    assert not [a for a in actions if isinstance(a, PreemptJob)]


def test_a_lost_node_requeues_its_jobs_until_their_limit():
    cluster = FakeCluster("fifo", [node("n", 1), node("m", 1)])
    cluster.submit(Job("a", max_restarts=1))
    cluster.running.clear()
    actions = cluster.send(NodeLost("n", "no heartbeat"))
    assert [(a.attempt, a.device_ids) for a in actions if isinstance(a, StartJob)] == [(2, ("m/0",))]
    cluster.running.clear()
    actions = cluster.send(NodeLost("m", "no heartbeat"))
    assert [a.reason for a in actions if isinstance(a, RecordEnd)] == [
        "node m is lost: no heartbeat; lost 2 times, its limit is 1"
    ]


def test_a_late_exit_of_an_earlier_attempt_is_ignored():
    cluster = FakeCluster("fifo", [node("n", 1), node("m", 1)])
    cluster.submit(Job("a"))
    cluster.running.clear()
    cluster.send(NodeLost("n", "no heartbeat"))
    assert cluster.scheduler.handle(5, JobExited("a", 1, "failed", "killed")) == []
    assert phase(cluster, "a") == "running"


def test_blocked_devices_are_left_alone_until_they_are_free_again():
    cluster = FakeCluster("fifo", [node("n", 2)])
    cluster.send(DevicesBlocked("n", ("n/0",), "process 77 of bob"))
    assert [a.device_ids for a in cluster.submit(Job("a"), Job("b")) if isinstance(a, StartJob)] == [("n/1",)]
    actions = cluster.send(DevicesBlocked("n", (), ""))
    assert [a.device_ids for a in actions if isinstance(a, StartJob)] == [("n/0",)]


def test_gpu_types_and_memory_are_respected():
    cluster = FakeCluster("fifo", [node("a", 1, "v100", 16), node("b", 1, "h200", 140)])
    actions = cluster.submit(Job("x", gpu_types=("h200",)), Job("y", gpu_memory_bytes=100), Job("z"))
    assert [(a.job_id, a.device_ids) for a in actions if isinstance(a, StartJob)] == [("x", ("b/0",)), ("z", ("a/0",))]
    assert [a.device_ids for a in cluster.exit("x") if isinstance(a, StartJob)] == [("b/0",)]


def test_an_elastic_job_grows_into_free_devices_and_shrinks_for_others():
    cluster = FakeCluster("explsched", [node("n", 4)])
    actions = cluster.submit(Job("wide", min_gpus=1, max_gpus=4, total_steps=50))
    assert len(cluster.running["wide"].device_ids) == 4
    for step in range(4):
        cluster.advance(10)
        cluster.report("wide", step, 1.0 - 0.1 * step)
    actions = cluster.submit(*(Job(f"small{i}", total_steps=50) for i in range(2))) + cluster.advance(120)
    assert [a.reason for a in actions if isinstance(a, PreemptJob)]
    assert len(cluster.running) == 3
    assert len(cluster.running["wide"].device_ids) == 2


def test_a_deadline_stops_the_job():
    cluster = FakeCluster("fifo", [node("n", 1)])
    cluster.submit(Job("a", deadline_ns=100 * NS_PER_S))
    cluster.advance(99)
    assert not cluster.ended
    cluster.advance(2)
    assert cluster.ended == {"a": "stopped"}


def test_shares_divide_weight_over_a_users_live_jobs():
    cluster = FakeCluster("explsched", [node("n", 1)], JobSchedulerOptions(fair_by="user"))
    cluster.send(SharesSet((("ann", 3.0),)))
    cluster.submit(Job("a", user="ann"), Job("b", user="ann"), Job("c", user="bob"))
    weights = cluster.scheduler.view(0, may_preempt=True).jobs.weight
    assert weights.tolist() == [1.5, 1.5, 1.0]


def test_nothing_is_preempted_between_quanta():
    cluster = FakeCluster("slaq", [node("n", 1)])
    cluster.submit(Job("a"))
    cluster.advance(59)
    assert not [a for a in cluster.submit(Job("b")) if isinstance(a, PreemptJob)]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job("a", min_gpus=9, max_gpus=9), "job 'a' asks for 9 GPUs; this cluster has 2 that it may use."),
        (Job("a", min_gpus=2, max_gpus=1), "job 'a' asks for 2..1 GPUs; allowed is 1 <= min <= max."),
        (Job("a", gpu_types=("tpu",)), "job 'a' asks for GPU type 'tpu'; this cluster has: gpu."),
        (Job("a", after=("ghost",)), "job 'a' waits for job 'ghost', which does not exist."),
        (Job("../a"), "job id '../a' is not allowed"),
        (Job("a", priority=1000), "job 'a': priority is 1000; allowed is -100 to 100."),
    ],
)
def test_bad_jobs_are_refused_with_one_sentence_and_leave_nothing(job, message):
    cluster = FakeCluster("fifo", [node("n", 2)])
    with pytest.raises(InvalidInput, match=message.replace("(", r"\(").replace(".", r"\.")):
        cluster.submit(Job("good"), job)
    assert cluster.scheduler.statuses(0) == []


def test_the_same_id_twice_in_one_batch_is_refused():
    with pytest.raises(InvalidInput, match="exists already"):
        FakeCluster("fifo", [node("n", 2)]).submit(Job("a"), Job("a"))


def test_asking_about_what_does_not_exist():
    cluster = FakeCluster("fifo", [node("n", 2)])
    with pytest.raises(NotFound):
        cluster.scheduler.check([StopRequested("ghost", by="ann")])
    cluster.submit(Job("a"))
    cluster.exit("a")
    with pytest.raises(InvalidInput, match="has ended already"):
        cluster.scheduler.check([JobHeld("a", by="ann")])


def test_a_sweep_cannot_be_declared_twice_differently():
    cluster = FakeCluster("fifo", [node("n", 2)])
    cluster.send(SweepDeclared(Sweep("s", chance=1.0)))
    cluster.scheduler.check([SweepDeclared(Sweep("s", chance=1.0))])
    with pytest.raises(InvalidInput, match="exists already with other settings"):
        cluster.scheduler.check([SweepDeclared(Sweep("s", chance=2.0))])


def test_why_says_what_a_waiting_job_bids():
    cluster = FakeCluster("explsched", [node("n", 1)])
    cluster.submit(Job("a", total_steps=9), Job("b", total_steps=9))
    for step in range(3):
        cluster.advance(61)
        cluster.report("a", step, 1 - 0.2 * step)
    waiting = next(s for s in cluster.scheduler.statuses(cluster.now_ns) if s.phase == "queued")
    assert waiting.reason.startswith("waits: bids ")
    assert waiting.density is not None


def test_many_jobs_are_compacted_without_losing_one():
    cluster = FakeCluster("las", [node("n", 4)])
    cluster.submit(*(Job(f"j{i}") for i in range(700)))
    for _ in range(1000):
        if not cluster.running:
            break
        cluster.exit(next(iter(cluster.running)))
    assert len(cluster.ended) == 700
    assert len(cluster.scheduler.view(0, may_preempt=False).jobs) < 700


def test_a_snapshot_continues_bit_for_bit():
    cluster = FakeCluster("explsched", [node("n", 2), node("m", 3)])
    cluster.submit(*(Job(f"j{i}", sweep="s", total_steps=9, params=(("lr", i / 9),)) for i in range(9)))
    for step in range(5):
        cluster.advance(45)
        for job_id in list(cluster.running):
            cluster.report(job_id, step, 1.0 / (step + 1 + int(job_id[1:])))
    copy = JobScheduler(type(cluster.scheduler.policy)(), cluster.scheduler.options)
    copy.load(cluster.scheduler.dump())
    now, original = cluster.now_ns, cluster.scheduler
    for offset, event in enumerate([JobSubmitted(Job("late")), NodeJoined(node("k", 1)), JobHeld("late", by="x")]):
        assert copy.handle(now + offset, event) == original.handle(now + offset, event)
    assert copy.dump() == original.dump()


def test_a_chain_of_thousands_of_dependencies_falls_at_once():
    cluster = FakeCluster("fifo", [node()])
    cluster.submit(*(Job(f"j{i}", after=(f"j{i - 1}",) if i else ()) for i in range(3000)))
    cluster.exit("j0", "failed", "boom")
    assert len(cluster.ended) == 3000
    assert cluster.scheduler.status("j2999", 0).reason == "its dependency j2998 has stopped"


def test_a_snapshot_remembers_a_gpu_type_whose_nodes_are_gone():
    cluster = FakeCluster("fifo", [node("a", 1, "v100"), node("b", 1, "h200")])
    cluster.submit(*(Job(f"j{i}") for i in range(3)))
    cluster.send(NodeLost("b", "gone"))
    copy = JobScheduler(type(cluster.scheduler.policy)(), cluster.scheduler.options)
    copy.load(cluster.scheduler.dump())
    assert copy.dump() == cluster.scheduler.dump()
    late = JobSubmitted(Job("late"))
    copy.check([late])
    for event in (late, JobExited("j0", 1, "completed", "done"), NodeJoined(node("b", 1, "h200"))):
        assert copy.handle(1, event) == cluster.scheduler.handle(1, event)


def test_deadlines_are_kept_in_any_order_of_submission():
    cluster = FakeCluster("fifo", [node(gpus=3)])
    cluster.submit(*(Job(f"j{s}", deadline_ns=s * NS_PER_S) for s in (20, 10, 30)))
    cluster.advance(15)
    assert set(cluster.ended) == {"j10"}
    cluster.advance(10)
    assert set(cluster.ended) == {"j10", "j20"}
    cluster.advance(10)
    assert set(cluster.ended) == {"j10", "j20", "j30"}
