"""The posted price keeps its guarantee under exactly its assumptions."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.perf.price import PostedPrices, competitive_alpha, dual_objective, posted_price
from tierline.testing.primal_dual import any_bids, exact_prices, guaranteed_ratio, run_learning, run_online, small_bids


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9))
def test_two_alpha_competitive_under_its_assumptions(seed):
    instance = small_bids(random.Random(seed))
    optimum = instance.optimum()
    prices = exact_prices(instance, optimum)
    won = run_online(instance, prices)
    assert won * guaranteed_ratio(prices, 1.0 / instance.capacity[0]) >= optimum - 1e-6
    assert (prices.used <= instance.capacity + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_final_prices_bound_the_optimum_from_above(seed):
    instance = small_bids(random.Random(seed))
    optimum = instance.optimum()
    prices = exact_prices(instance, optimum)
    run_online(instance, prices)
    bids = zip(instance.utility.tolist(), instance.demand, strict=True)
    assert dual_objective(prices, bids) >= optimum - 1e-6 * optimum


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_capacity_holds_without_any_assumption(seed):
    instance = any_bids(random.Random(seed))
    prices = exact_prices(instance, instance.optimum())
    run_online(instance, prices)
    assert (prices.used <= instance.capacity + 1e-9).all()
    assert run_learning(instance) > 0


def test_a_price_of_zero_breaks_the_guarantee():
    """The test above can fail: admitting everybody who comes first loses by the whole spread of values."""
    worst = 0.0
    for seed in range(60):
        instance = small_bids(random.Random(seed))
        optimum = instance.optimum()
        used, won = np.zeros_like(instance.capacity), 0.0
        for utility, demand in zip(instance.utility, instance.demand, strict=True):
            if (used + demand <= instance.capacity).all():
                used, won = used + demand, won + utility
        worst = max(worst, optimum / won / guaranteed_ratio(exact_prices(instance, optimum), 1 / instance.capacity[0]))
    assert worst > 1.0


def test_idle_costs_l_and_full_costs_u():
    price = posted_price(np.array([0.0, 4.0, 8.0]), np.array([8.0, 8.0, 8.0]), 0.5, 50.0)
    assert price.tolist() == pytest.approx([0.5, 5.0, 50.0])


def test_release_gives_back_and_never_below_zero():
    prices = PostedPrices(np.array([2.0]), 1.0, 10.0)
    assert prices.admit(9.0, np.array([1.0]))
    prices.release(np.array([5.0]))
    assert prices.used.tolist() == [0.0]


def test_alpha():
    assert competitive_alpha(1.0, 2.0) == 1.0
    assert competitive_alpha(1.0, np.e**3) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="0 < L <= U"):
        competitive_alpha(0.0, 1.0)
