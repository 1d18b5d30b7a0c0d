"""The order of those who wait: deadlines, hopeless ones last, nobody last for ever; text behind a burst of large images."""

from __future__ import annotations

import dataclasses
from statistics import mean

from tierline import serving_experiments as experiments
from tierline.core.served_trace import ServedTrace, TracedImage, TracedRequest
from tierline.core.slo import Slo
from tierline.policies.deadlines import place
from tierline.presets import ServingPreset, preset_of

S = 1_000_000_000


def test_the_earliest_deadline_is_first_and_those_who_cannot_be_in_time_are_last() -> None:
    soon, later = place(0, 0, 2 * S, 0.5, 10 * S), place(0, 0, 3 * S, 0.5, 10 * S)
    hopeless = place(0, 0, 1 * S, 1.5, 10 * S)
    assert soon < later < hopeless


def test_who_has_waited_a_patience_comes_again_as_if_it_were_new() -> None:
    """So it passes those who came later, and is hopeless no more."""
    old = [place(now_s * S, 0, 1 * S, 0.5, 10 * S) for now_s in (0, 1, 9, 10, 11)]
    assert [hopeless for hopeless, _ in old] == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert old[3] == (0.0, 11.0 * S)
    assert old[3] < place(10 * S, 10 * S, 12 * S, 0.5, 10 * S), "one that comes then and has more time"


def test_a_step_of_priority_is_worth_its_time() -> None:
    urgent = place(0, 0, 5 * S, 0.1, 10 * S, priority=2, step_ns=S)
    assert place(0, 0, 2 * S, 0.1, 10 * S) < urgent < place(0, 0, 4 * S, 0.1, 10 * S)


def mean_text_ttft_s(preset: ServingPreset) -> float:
    """Of a text request each 50 ms while forty large images come within a second, on two devices."""
    images = [
        TracedRequest(i * S // 40, 3000, 20, (TracedImage(f"h{i}", 2800),)) for i in range(40)
    ]  # fmt: skip
    texts = [TracedRequest(i * S // 20 + 1, 200, 20) for i in range(60)]
    trace = ServedTrace("burst", tuple(sorted((*images, *texts), key=lambda each: each.arrived_ns)), "")
    setup = experiments.ServingSetup(instances=2, slo=Slo.parse("ttft=200ms,image=2s,tpot=30ms"))
    backend, _ = experiments.simulate(trace, preset, setup)
    outcomes = backend.outcomes()
    assert all(each.ok for each in outcomes)
    return mean((each.first_token_ns - each.arrived_ns) / S for each in outcomes if not each.images)


def test_text_does_not_wait_behind_a_burst_of_large_images() -> None:
    adaptive = preset_of("adaptive")
    by_arrival = preset_of("adaptive-deadlines")
    assert dataclasses.replace(by_arrival, name="") != dataclasses.replace(adaptive, name="")
    assert mean_text_ttft_s(adaptive) < 0.2 < mean_text_ttft_s(by_arrival)
