"""Figures of a serving run, each against a value worked out by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from tierline.core.errors import InvalidInput
from tierline.core.slo import Slo
from tierline.runtime.serving_report import ServedOutcome, report

MS = 1_000_000
S = 1000 * MS


def answered(arrived_s: float, ttft_s: float, tpot_s: float, tokens: int, images: bool = False) -> ServedOutcome:
    arrived = round(arrived_s * S)
    first = arrived + round(ttft_s * S)
    return ServedOutcome(arrived, first, first + round(tpot_s * S) * (tokens - 1), tokens, 100, int(images))


def failed(arrived_s: float, outcome: str, images: bool = False) -> ServedOutcome:
    return ServedOutcome(round(arrived_s * S), -1, round((arrived_s + 0.1) * S), 0, 100, int(images), outcome)


SLO = Slo(500 * MS, 50 * MS)
RUN = [
    answered(0.0, 0.4, 0.04, 11),  # met; ends at 0.8
    answered(1.0, 0.6, 0.04, 11),  # first token late
    answered(2.0, 0.4, 0.06, 11, images=True),  # further tokens late
    answered(3.0, 0.5, 0.05, 11, images=True),  # met, just: ends at 4.0
    answered(4.0, 0.3, 9.0, 1, images=True),  # one token: the first counts alone; ends at 4.3
    failed(5.0, "refused"),
    failed(6.0, "refused", images=True),
    failed(9.9, "timeout"),  # ends at 10.0
]


def test_goodput_counts_requests_that_met_both_promises() -> None:
    found = report(RUN, SLO, devices=2)
    assert (found.from_ns, found.until_ns, found.seconds) == (0, 10 * S, 10.0)
    assert found.all.requests == 8 and found.all.finished == 5
    assert found.all.goodput_per_s == pytest.approx(0.3)
    assert found.all.goodput_per_device == pytest.approx(0.15)
    assert found.all.attainment == pytest.approx(3 / 8)
    assert found.all.ttft_attainment == pytest.approx(4 / 8)
    assert found.all.tpot_attainment == pytest.approx(4 / 8)
    assert found.offered_per_s == pytest.approx(0.8)


def test_text_and_image_requests_are_told_apart() -> None:
    found = report(RUN, SLO)
    assert (found.text.requests, found.images.requests) == (4, 4)
    assert (found.text.attainment, found.images.attainment) == (0.25, 0.5)
    assert found.text.errors == (("refused", 1), ("timeout", 1)) and found.images.errors == (("refused", 1),)
    assert found.all.errors == (("refused", 2), ("timeout", 1))
    assert found.text.goodput_per_s + found.images.goodput_per_s == pytest.approx(found.all.goodput_per_s)


def test_latencies_are_those_of_finished_requests() -> None:
    found = report(RUN, SLO)
    assert found.text.ttft.count == 2 and found.text.ttft.p50 == pytest.approx(0.5)
    assert found.text.ttft.p90 == pytest.approx(0.58) and found.text.ttft.p99 == pytest.approx(0.598)
    assert found.images.tpot.count == 2  # the answer of one token has none
    assert found.images.tpot.mean == pytest.approx(0.055)
    assert found.text.e2e.mean == pytest.approx(0.9)


def test_throughput_counts_what_finished_within_the_window() -> None:
    window = report(RUN, SLO, window_ns=(S, 4 * S))
    assert window.all.requests == 3  # arrived at 1, 2 and 3
    assert window.all.requests_per_s == pytest.approx(3 / 3)  # ended at 2.0, 3.0 and 4.0
    assert window.all.output_tokens_per_s == pytest.approx(33 / 3)
    assert window.all.goodput_per_s == pytest.approx(1 / 3)


def test_a_request_without_an_end_is_unfinished_and_met_nothing() -> None:
    found = report([ServedOutcome(0), ServedOutcome(0, outcome="unfinished"), answered(0.0, 0.1, 0.01, 5)])
    assert found.all.errors == (("unfinished", 2),)
    assert found.all.attainment == pytest.approx(1 / 3)


def test_without_requests_of_a_kind_its_shares_are_not_known() -> None:
    images = report([answered(0.0, 0.1, 0.01, 5)], SLO).images
    assert images.requests == 0 and images.goodput_per_s == 0.0 and images.errors == ()
    assert math.isnan(images.attainment) and math.isnan(images.ttft.p99)


def test_order_of_outcomes_does_not_matter() -> None:
    mixed = RUN[:]
    random.Random(1).shuffle(mixed)
    assert report(mixed, SLO) == report(RUN, SLO)


def test_each_request_is_judged_by_what_was_promised_to_it() -> None:
    """Those with images have a time of their own, and those with long prompts more: in one report."""
    promise = replace(SLO, image_ttft_ns=800 * MS, ttft_ns_per_ktoken=100 * MS)
    short, images = answered(0.0, 0.6, 0.04, 11), answered(0.0, 0.8, 0.04, 11, images=True)
    long = replace(short, prompt_tokens=1000)
    found = report([short, long, replace(images, prompt_tokens=0), answered(0.0, 0.82, 0.04, 11, images=True)], promise)
    assert (found.text.attainment, found.images.attainment, found.all.attainment) == (0.5, 0.5, 0.5)
    assert report([short, long], SLO).all.attainment == 0.0
    assert found.slo == promise and found.all.tpot_attainment == 1.0


def test_without_a_promise_every_answer_is_in_time() -> None:
    assert report(RUN).all.attainment == pytest.approx(5 / 8)


def test_what_cannot_be_judged() -> None:
    with pytest.raises(InvalidInput, match="needs requests and devices"):
        report([])
    with pytest.raises(InvalidInput, match="needs requests and devices"):
        report(RUN, devices=0)
    with pytest.raises(InvalidInput, match="must not be empty"):
        report(RUN, window_ns=(S, S))
