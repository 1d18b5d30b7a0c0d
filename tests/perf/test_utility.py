"""Online utility: declared and learnt levels."""

import numpy as np

from tierline.perf.utility import FLOOR, SweepLevels


def utility(levels, loss):
    return float(levels.utility(np.array([0]), np.array([loss]))[0])


def test_declared_levels_fix_the_scale():
    levels = SweepLevels()
    levels.declare(0, 1.0, 0.2)
    assert utility(levels, 1.0) == 0.0
    assert abs(utility(levels, 0.6) - 0.5) < 1e-12
    assert utility(levels, 0.1) == 1.0


def test_without_a_chance_level_the_median_first_report_is_the_baseline():
    levels = SweepLevels()
    levels.ensure(0)
    for loss in (0.7, 0.69, 0.71, 1e9, 0.7):  # one absurd report changes nothing
        levels.first_loss(0, loss)
        levels.loss(0, loss)
    assert levels.chance()[0] == 0.7
    assert utility(levels, 0.7) == 0.0


def test_recovering_from_a_bad_start_earns_nothing():
    levels = SweepLevels()
    levels.declare(0, 0.7, None)
    assert utility(levels, 2.4) == utility(levels, 0.7) == 0.0


def test_the_first_small_drop_of_a_sweep_is_not_everything():
    levels = SweepLevels()
    levels.declare(0, 1.0, None)
    levels.loss(0, 0.999)
    assert utility(levels, 0.999) < 0.01
    assert levels.range()[0] == FLOOR


def test_no_report_and_no_finite_report_are_worth_nothing():
    levels = SweepLevels()
    levels.ensure(0)
    assert utility(levels, np.inf) == 0.0


def test_negated_accuracies_work_as_losses():
    levels = SweepLevels()
    levels.declare(0, -0.1, -1.0)
    assert abs(utility(levels, -0.55) - 0.5) < 1e-12


def test_dump_and_load():
    levels = SweepLevels()
    levels.declare(0, None, None)
    levels.first_loss(0, 0.7)
    levels.loss(0, 0.3)
    copy = SweepLevels()
    copy.load(levels.dump())
    assert utility(copy, 0.5) == utility(levels, 0.5)
