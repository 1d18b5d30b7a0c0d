import numpy as np
import pytest

from tierline.perf.speedup import speedup_curve, sync_step_time


def test_one_size_needs_no_curve():
    assert speedup_curve((), 2, 2) is None


def test_measured_points_are_kept_and_gains_never_grow():
    curve = speedup_curve(((1, 1.0), (2, 1.9), (4, 3.0)), 1, 4)
    assert curve is not None
    assert curve[0] == 0.0
    assert curve[[1, 2, 4]].tolist() == pytest.approx([1.0, 1.9, 3.0])
    assert (np.diff(np.diff(curve[1:])) <= 1e-12).all()


def test_superlinear_and_falling_measurements_become_concave():
    curve = speedup_curve(((1, 1.0), (2, 1.1), (3, 3.0), (4, 2.0)), 1, 4)
    assert curve is not None
    gains = np.diff(curve[1:])
    assert (np.diff(gains) <= 1e-12).all()
    assert (gains >= 0).all()


def test_the_default_doubles_at_ninety_percent():
    curve = speedup_curve((), 1, 4)
    assert curve is not None
    assert curve[2] == pytest.approx(1.8)
    assert curve[4] == pytest.approx(3.24)


def test_speed_is_relative_to_min_gpus_and_zero_below():
    curve = speedup_curve((), 2, 4)
    assert curve is not None
    assert curve[:2].tolist() == [0.0, 0.0]
    assert curve[2] == 1.0


def test_optimus_model_recovers_its_own_law():
    gpus = np.array([1.0, 2.0, 4.0, 8.0])
    step = 1.0 / gpus + 0.1 + 0.05 * (gpus - 1) / gpus
    assert sync_step_time(gpus, 1 / step, np.array([16.0]))[0] == pytest.approx(1 / 16 + 0.1 + 0.05 * 15 / 16, rel=1e-6)


def test_a_speed_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        speedup_curve(((1, 0.0), (2, 1.0)), 1, 2)
