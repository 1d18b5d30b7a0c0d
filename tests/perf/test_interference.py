"""What is believed of two jobs on one device: where it starts, and how what is seen corrects it."""

import math

import numpy as np
import pytest

from tierline.core.nouns import Job, PairSpeed
from tierline.perf.interference import MEMORY, PRIOR_WEIGHT, Interference, by_demand, fits, type_name


def believes(*pairs: PairSpeed) -> Interference:
    found = Interference()
    found.measure(pairs)
    for name in ("a", "b"):
        found.index(Job(name, job_type=name))
    return found


def test_a_job_is_known_by_its_type_else_by_its_demands() -> None:
    assert type_name(Job("x", job_type="ResNet-18", sm_util=0.5)) == "ResNet-18"
    assert type_name(Job("x", sweep="s", sm_util=0.5, bw_util=0.25)) == type_name(
        Job("y", sweep="s", sm_util=0.5, bw_util=0.25)
    )
    assert type_name(Job("x", sm_util=0.5)) == type_name(Job("y", sm_util=0.5)) != type_name(Job("z", sm_util=0.6))
    assert type_name(Job("x", sweep="s")) == ""
    assert Interference().index(Job("x")) == -1


def test_demands_slow_both_down_once_they_ask_for_more_than_there_is() -> None:
    assert by_demand((0.3, 0.4), (0.5, 0.6)) == 1.0
    assert by_demand((0.8, 0.1), (0.8, 0.1)) == pytest.approx(1 / 1.6)
    assert by_demand((0.2, 0.9), (0.2, 0.6)) == pytest.approx(1 / 1.5)
    assert math.isnan(by_demand((0.0, 0.0), (0.5, 0.5)))


def test_memory_must_fit_where_it_is_known() -> None:
    assert fits((0, 0), 0)
    assert fits((4, 6), 10)
    assert not fits((5, 6), 10)
    assert not fits((0, 1), 10)  # who does not say needs all of it


def test_the_pair_of_the_type_comes_before_that_of_any_type_and_before_demands() -> None:
    found = Interference()
    found.measure((PairSpeed("", "a", "b", 0.5), PairSpeed("v100", "a", "b", 0.7)))
    a = found.index(Job("x", job_type="a", sm_util=0.9))
    b = found.index(Job("y", job_type="b", sm_util=0.9))
    assert found.speed("v100", a, b) == 0.7
    assert found.speed("h200", a, b) == 0.5
    assert found.speed("h200", b, a) == pytest.approx(1 / 1.8)
    assert math.isnan(found.speed("h200", a, -1))


def test_what_is_seen_outvotes_the_prior_as_documented() -> None:
    found = believes(PairSpeed("", "a", "b", 0.9))
    assert found.speed("t", 0, 1) == 0.9
    found.see("t", 0, 1, 0.4)
    assert found.speed("t", 0, 1) == pytest.approx((PRIOR_WEIGHT * 0.9 + 0.4) / (PRIOR_WEIGHT + 1))
    found.see("t", 0, 1, 0.6)
    assert found.speed("t", 0, 1) == pytest.approx((PRIOR_WEIGHT * 0.9 + 2 * 0.5) / (PRIOR_WEIGHT + 2))
    assert found.speed("other", 0, 1) == 0.9  # seen on one type, believed of that type
    for _ in range(100):
        found.see("t", 0, 1, 0.4)
    settled = found.speed("t", 0, 1)
    for _ in range(3 * MEMORY):
        found.see("t", 0, 1, 0.8)  # a drift is followed
    assert settled == pytest.approx(0.43, abs=0.01)
    assert found.speed("t", 0, 1) > 0.75


def test_a_pair_nobody_knew_is_believed_as_it_was_seen() -> None:
    found = believes()
    assert math.isnan(found.speed("t", 0, 1))
    found.see("t", 0, 1, 1.7)
    assert found.speed("t", 0, 1) == 1.0


def test_the_table_of_beliefs_is_the_same_and_follows_what_is_seen() -> None:
    found = believes(PairSpeed("", "a", "b", 0.9), PairSpeed("", "b", "b", 0.0))
    table = found.speeds(("t", "u"))
    assert not table.flags.writeable
    found.see("t", 0, 1, 0.5)
    table = found.speeds(("t", "u"))
    for t, name in enumerate(("t", "u")):
        for a in (0, 1):
            for b in (0, 1):
                assert np.array_equal(table[t, a, b], found.speed(name, a, b), equal_nan=True)
    found.measure((PairSpeed("", "c", "a", 0.3), PairSpeed("u", "b", "c", 0.4)))
    found.speeds(("t", "u"))
    found.index(Job("c", job_type="c"))
    wider = found.speeds(("t", "u"))
    again = Interference()
    again.load(found.dump())
    assert wider.shape == (2, 3, 3)
    assert np.array_equal(wider, again.speeds(("t", "u")), equal_nan=True)


def test_beliefs_come_back_from_a_dump() -> None:
    found = believes(PairSpeed("", "a", "b", 0.9))
    found.index(Job("d", sweep="s", sm_util=0.5))
    found.see("t", 0, 1, 0.35)
    copy = Interference()
    copy.load(found.dump())
    assert copy.dump() == found.dump()
    assert np.array_equal(copy.speeds(("t",)), found.speeds(("t",)), equal_nan=True)
    assert copy.knows((PairSpeed("", "a", "b", 0.9),))
    assert not copy.knows((PairSpeed("", "a", "b", 0.8),))
