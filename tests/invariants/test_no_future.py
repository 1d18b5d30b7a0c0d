"""Views expose no future: whatever is changed in the time to come, decisions up to now stay the same, action for action."""

import dataclasses

import numpy as np
import pytest

from tierline.backends.jobs.sim import SimBackend, SimOptions, uniform_nodes
from tierline.clock import SimClock
from tierline.core.nouns import NS_PER_S, Job, Sweep
from tierline.perf.truth import Arrival, Normaliser, Truth, Workload
from tierline.policies.jobs import POLICIES, make_policy
from tierline.runtime.driver import Driver
from tierline.schedulers.jobs import JobScheduler

BLIND = sorted(set(POLICIES) - {"clairvoyant"})
CUT_NS = 3000 * NS_PER_S


def workload() -> Workload:
    rng = np.random.default_rng(5)
    entries = []
    for i in range(30):
        depth, speed = rng.uniform(0, 0.9), rng.uniform(0.02, 0.5)
        losses = 1 - depth * (1 - np.exp(-speed * np.arange(31))) + rng.normal(0, 0.005, 31)
        if i % 7 == 3:
            losses[rng.integers(3, 30) :] = np.nan
        stop = float(rng.uniform(0.2, 1)) if i % 4 == 0 else 1.0
        truth = Truth(np.arange(31), losses, float(rng.uniform(600, 4000)), stop_fraction=stop)
        job = Job(f"j{i}", sweep=f"s{i % 2}", total_steps=30, params=(("lr", float(speed)),))
        entries.append(Arrival(int(i * 90 * NS_PER_S), job, truth))
    sweeps = (Sweep("s0", chance=1.0), Sweep("s1", chance=1.0))
    return Workload("made", None, sweeps, (Normaliser(1.0, 0.1),) * 2, tuple(entries), gpus=4)


class Recorder:
    def __init__(self):
        self.rows = []

    def append(self, entries):
        self.rows += [(now, event, list(actions)) for now, event, actions in entries]


def run(which: Workload, policy: str):
    """Everything recorded before the cut, and each job's progress (share) at the cut."""
    clock, recorder = SimClock(), Recorder()
    backend = SimBackend(clock, which, SimOptions(uniform_nodes(4)))
    Driver(JobScheduler(make_policy(policy)), backend, clock, recorder).run(until=lambda now: now >= CUT_NS)
    progress = np.zeros(len(which.entries))
    for segment in backend.record().segments:
        progress[segment.row] = max(progress[segment.row], segment.share_to)
    return [row for row in recorder.rows if row[0] < CUT_NS], progress


def poison(which: Workload, progress) -> Workload:
    """Change every curve, end and (for jobs that have not begun) duration after the cut."""
    entries = []
    for share, entry in zip(progress, which.entries, strict=True):
        truth = entry.truth
        ahead = truth.shares > share
        losses = np.where(ahead, 1e-3, truth.losses)
        stop = truth.stop_fraction
        if share < 0.9 and (stop > share or share == 0):
            stop = share + (1.0 - share) * 0.95
        duration = truth.duration_s * (7.0 if share == 0 else 1.0)
        entries.append(
            dataclasses.replace(entry, truth=Truth(truth.steps, losses, duration, stop_fraction=max(stop, 1e-3)))
        )
    return dataclasses.replace(which, entries=tuple(entries))


@pytest.mark.parametrize("policy", BLIND)
def test_decisions_do_not_depend_on_what_has_not_happened(policy):
    original = workload()
    recorded, progress = run(original, policy)
    again, _ = run(poison(original, progress), policy)
    assert len(recorded) > 50
    assert again == recorded


def test_the_test_can_fail_a_past_change_changes_decisions():
    original = workload()
    recorded, progress = run(original, "explsched")
    changed, _ = run(poison(original, progress * 0.3), "explsched")
    assert changed != recorded
