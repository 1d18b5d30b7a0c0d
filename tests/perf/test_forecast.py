"""Forecasts as the scheduler asks for them, on a fake cluster."""

import numpy as np
import pytest

from tierline.core.events import JobHeld, JobReleased, SweepDeclared
from tierline.core.nouns import Job, Sweep
from tierline.testing.jobs import FakeCluster, node


def cluster_with(losses, policy="explsched", interval_s=60, steps=50, **job):
    """One device per job; job i reports losses[i] at every interval."""
    cluster = FakeCluster(policy, [node("n", len(losses))])
    cluster.send(SweepDeclared(Sweep("s", chance=1.0)))
    cluster.submit(*(Job(f"j{i}", sweep="s", total_steps=steps, **job) for i in range(len(losses))))
    for step in range(max(map(len, losses))):
        if step:
            cluster.advance(interval_s)
        for i, series in enumerate(losses):
            if step < len(series):
                cluster.report(f"j{i}", step, series[step])
    return cluster


def forecast(cluster):
    found = cluster.scheduler.view(cluster.now_ns, may_preempt=True).forecast
    assert found is not None
    return found


def test_steep_beats_slow_beats_flat_beats_dead():
    steep, slow = [1.0, 0.8, 0.6, 0.5], [1.0, 0.99, 0.98, 0.97]
    density = forecast(cluster_with([steep, slow, [1.0] * 4, [1.0, 1.0, 1.0, None]])).density
    assert density[0] > density[1] > density[2] > density[3] == 0.0


def test_density_falls_while_nothing_is_learnt():
    short = forecast(cluster_with([[1.0, 0.6, 0.6]])).density[0]
    long = forecast(cluster_with([[1.0, 0.6] + [0.6] * 10])).density[0]
    assert long < short / 2


def test_a_loss_far_above_chance_is_worth_less_than_one_at_chance():
    density = forecast(cluster_with([[1.0, 1.0, 1.0], [1.0, 9.0, 9.0]])).density
    assert density[1] < density[0]


def test_a_diverged_job_that_recovers_counts_again():
    assert forecast(cluster_with([[1.0, None, 0.7]])).density[0] > 0


def test_done_steps_leave_nothing_to_gain():
    assert forecast(cluster_with([[1.0, 0.5, 0.4]], steps=2)).density[0] == 0.0


def test_a_gang_pays_for_all_its_gpus():
    one = forecast(cluster_with([[1.0, 0.6, 0.5]])).density[0]
    cluster = FakeCluster("explsched", [node("n", 4)])
    cluster.send(SweepDeclared(Sweep("s", chance=1.0)))
    cluster.submit(Job("j0", sweep="s", total_steps=50, min_gpus=4, max_gpus=4))
    for step, loss in enumerate([1.0, 0.6, 0.5]):
        if step:
            cluster.advance(60)
        cluster.report("j0", step, loss)
    assert forecast(cluster).density[0] == pytest.approx(one / 4)


def test_unexplored_until_two_reports_or_enough_service():
    cluster = cluster_with([[1.0], [1.0, 0.9]])
    assert forecast(cluster).unexplored.tolist() == [True, False]
    cluster.advance(301)
    assert forecast(cluster).unexplored.tolist() == [False, False]


def test_siblings_with_like_hyperparameters_share_their_fortune():
    cluster = FakeCluster("explsched", [node("n", 30)])
    cluster.send(SweepDeclared(Sweep("s", chance=1.0)))
    rates = np.linspace(0.0, 1.0, 30)
    cluster.submit(*(Job(f"j{i}", sweep="s", total_steps=50, params=(("lr", float(r)),)) for i, r in enumerate(rates)))
    for step in range(4):
        cluster.advance(60)
        for i, rate in enumerate(rates):
            if i != 3 and i != 27:  # these two have only just begun
                cluster.report(f"j{i}", step, 1.0 - 0.1 * step * (rate > 0.6))
            elif step < 2:
                cluster.report(f"j{i}", step, 1.0)
    density = forecast(cluster).density
    assert density[27] > 3 * density[3]


def test_a_batch_job_without_losses_is_worth_its_completion():
    cluster = FakeCluster("explsched", [node("n", 1)])
    cluster.submit(Job("a", kind="batch"))
    cluster.advance(100)
    found = forecast(cluster)
    assert not found.unexplored[0]
    assert found.density[0] == pytest.approx(1 / 100)


def test_curve_columns_only_for_those_who_ask():
    losses = [[1.0 / (k + 1) for k in range(8)], [1.0, 0.999, 0.998, 0.998, 0.998, 0.998, 0.998, 0.998]]
    assert forecast(cluster_with(losses)).curves is None
    curves = forecast(cluster_with(losses, policy="slaq")).curves
    assert curves is not None
    assert curves.loss_drop[0] > curves.loss_drop[1] >= 0
    assert curves.asymptote[0] < 0.2


def test_remaining_time_never_exceeds_the_declared_steps():
    curves = forecast(cluster_with([[1.0 - 0.01 * k for k in range(8)]], policy="srtf", steps=10)).curves
    assert curves.remaining_s[0] <= 3 * 60 + 1


def test_restart_cost_lowers_the_bid_of_a_suspended_job():
    cluster = cluster_with([[1.0, 0.8, 0.7, 0.65]])
    running = forecast(cluster).density[0]
    cluster.submit(Job("other", priority=9))
    cluster.send(JobHeld("j0", "ann"), JobReleased("j0", "ann"))
    assert forecast(cluster).density[0] < running
