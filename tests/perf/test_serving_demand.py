"""The formulas of the serving tier, by hand and by the relations that define them."""

import math
import random

import pytest

from tierline.core.stage_times import BatchShape
from tierline.perf.serving_demand import (
    PRIOR_TOKENS,
    DemandMeter,
    OutputHistory,
    StageRates,
    burst_tolerance,
    completion_s,
    decode_demand_s,
    makespan_s,
    share_out,
    tipping_point,
)


class LinearDevice:
    """Memory-bound below 1000 tokens, then 1 ms for each 100."""

    kv_token_bytes, embedding_token_bytes, kv_tokens, patches_per_token = 1000, 10, 10**6, 3

    def iteration_s(self, batch: BatchShape) -> float:
        tokens = sum(new for new, _ in batch.chunks) + batch.decodes
        pairs = sum(new * cached for new, cached in batch.chunks)
        return max(10e-3, tokens * 10e-6) + 1e-9 * pairs + 1e-8 * batch.decode_context + 20e-6 * batch.decodes

    def decodes_s(self, decodes, decode_context, steps):
        raise NotImplementedError

    def encode_s(self, patches):
        return 2e-3 + 1e-6 * sum(patches)

    def prepare_s(self, patches):
        return 0.0

    def transfer_s(self, size_bytes):
        return 1e-3 + size_bytes / 1e9


def test_rates_are_those_of_the_device():
    rates = StageRates.of(LinearDevice())
    assert rates.prefill_token_s == pytest.approx(10e-6)
    assert rates.prefill_pair_s == pytest.approx(1e-9)
    assert rates.decode_s(64, 64 * 1000) == pytest.approx(10e-3 + 64 * 20e-6 + 64e3 * 1e-8, rel=1e-3)
    assert rates.encode_s(1000) == pytest.approx(3e-3)
    assert rates.image_s(100) == rates.encode_s(300)
    assert rates.encode_s(0) == rates.decode_s(0, 0) == 0
    assert rates.move_s(1000) == pytest.approx(1e-3 + 1e-3)
    assert rates.tipping_tokens == tipping_point(LinearDevice()) == 1000


def test_what_is_cached_is_not_computed_and_a_later_part_costs_more():
    rates = StageRates.of(LinearDevice())
    assert rates.prefill_s(3000, 3000) == 0
    assert 0 < rates.prefill_s(3000, 2000) < rates.prefill_s(3000)
    assert rates.prefill_s(9000, 8000) > rates.prefill_s(1000) > 0


def test_burst_tolerance_is_capacity_over_demand():
    assert burst_tolerance(3, 1.5) == 2 and burst_tolerance(3, 0) == math.inf


@pytest.mark.parametrize("seed", range(20))
def test_sharing_out_makes_the_least_tolerance_greatest(seed):
    rng = random.Random(seed)
    demand = {"text": rng.random() * 3, "multimodal": rng.random() * 3}
    spare = rng.randrange(12)
    given = share_out(spare, {"text": 1, "multimodal": 1}, demand)

    def least(text):
        return min(burst_tolerance(text, demand["text"]), burst_tolerance(spare + 2 - text, demand["multimodal"]))

    assert sum(given.values()) == spare + 2
    assert least(given["text"]) == pytest.approx(max(least(text) for text in range(1, spare + 2)))


def test_remaining_is_the_mean_of_longer_answers_beyond_what_was_made():
    history = OutputHistory()
    assert history.remaining(0) == PRIOR_TOKENS and history.remaining(500) == 250
    for length in (10, 20, 30):
        history.ended(length)
    history.learn(())
    assert history.remaining(0) == pytest.approx(20)
    assert history.remaining(10) == pytest.approx(25 - 10)
    assert history.remaining(29) == 1
    assert history.remaining(30) == 15  # none was longer
    assert history.remaining(1) == pytest.approx(19)


def test_answers_that_go_on_count_as_longer_than_they_are():
    history = OutputHistory()
    for length in (10, 10, 20, 40):
        history.ended(length)
    history.learn((15, 15, 30, 30))
    # Of 8 six go on beyond 10, of the 4 that reach 20 three do, and of the 1 that reaches 40 none.
    assert history.remaining(0) == pytest.approx(10 + 0.75 * 10 + 0.75 * 0.75 * 20)
    assert history.remaining(25) == pytest.approx(15)
    history.learn(())
    assert history.remaining(0) == pytest.approx(20)


def test_the_first_to_end_do_not_stand_for_all():
    """Lengths of an exponential tail, begun at once and made at one speed: seen at any moment, the mean is about right."""
    drawn = [round(-300 * math.log(1 - (place + 0.5) / 1000)) for place in range(1000)]
    for seen in (200, 400, 800):
        history = OutputHistory()
        for length in sorted(length for length in drawn if length <= seen):
            history.ended(length)
        history.learn(seen for length in drawn if length > seen)
        assert history.remaining(0) == pytest.approx(300, rel=0.1)
        assert sum(history.lengths) / len(history.lengths) < 0.85 * 300


def test_the_history_forgets_what_is_old():
    history = OutputHistory(window=50)
    for length in [1000] * 50 + [10] * 64:
        history.ended(length)
    history.learn(())
    assert history.remaining(0) == 10 and len(history.lengths) == 50


def test_demand_tends_to_rate_times_service_and_fades():
    meter = DemandMeter(tau_s=10.0)
    for second in range(100):
        for _ in range(4):
            meter.arrived(second * 10**9, encode_s=0.1, prefill_s=0.25, decode_s=0.5)
    rate, encode, prefill, decode = meter.demand(100 * 10**9)
    assert rate == pytest.approx(4, rel=0.1)
    assert (encode, prefill, decode) == pytest.approx((0.4, 1.0, 2.0), rel=0.1)
    assert meter.demand(200 * 10**9)[3] < 0.001
    assert DemandMeter().demand(5) == (0.0, 0.0, 0.0, 0.0)


def test_demand_is_not_taken_for_too_small_at_the_start():
    meter = DemandMeter(tau_s=100.0)
    for at in range(50):
        meter.arrived(at * 10**8, 0.0, 0.05, 0.0)
    assert meter.demand(5 * 10**9)[2] == pytest.approx(0.5, rel=0.1)


def test_decoding_an_answer_is_its_share_of_the_batch():
    rates = StageRates(decode_base_s=10e-3, decode_sequence_s=0, decode_context_s=0)
    assert decode_demand_s(rates, 100, 1000, batch=10) == pytest.approx(100 * 10e-3 / 10)


def test_the_longest_job_first_to_whom_it_ends_earliest_with():
    assert completion_s([3, 1, 2], [1.0]) == [3, 6, 5]
    assert completion_s([3, 1, 2], [1.0, 1.0]) == [3, 3, 2]
    assert completion_s([4, 1], [1.0, 0.25]) == [4, 4]
    assert completion_s([1], []) == completion_s([1], [0.0]) == [math.inf]
    assert makespan_s([], [1.0]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_makespan_is_within_grahams_bound_and_another_machine_never_hurts_it(seed):
    rng = random.Random(seed)
    jobs = [rng.random() for _ in range(rng.randrange(1, 30))]
    machines = rng.randrange(1, 6)
    bound = max(max(jobs), sum(jobs) / machines)
    assert bound <= makespan_s(jobs, [1.0] * machines) + 1e-9 <= (4 / 3) * bound + max(jobs) / 3 + 1e-6
    assert makespan_s(jobs, [1.0] * (machines + 1)) <= makespan_s(jobs, [1.0] * machines) + 1e-9
