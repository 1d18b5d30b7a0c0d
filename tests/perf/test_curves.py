"""Curve fits against curves whose law is known."""

import numpy as np
import pytest

from tierline.perf.curves import fit_curves, shapes, steps_until_flat


def right_aligned(points, window):
    """Pack ragged (k, loss) series into (k, loss, valid), each (J × window), newest last."""
    k = np.zeros((len(points), window))
    loss = np.zeros((len(points), window))
    valid = np.zeros((len(points), window))
    for row, (steps, losses) in enumerate(points):
        n = min(len(steps), window)
        if n:
            k[row, -n:], loss[row, -n:], valid[row, -n:] = steps[-n:], losses[-n:], 1.0
    return k, loss, valid


def fit(k, loss, floor=-1.0):
    packed = right_aligned([(np.asarray(k), np.asarray(loss))], 32)
    return fit_curves(*packed, np.array([floor]))


@pytest.mark.parametrize(
    "law",
    [
        lambda k: 0.3 + 1.0 / (0.5 * k + 1.2),
        lambda k: 0.2 + 0.8 * (k + 1.0) ** -0.7,
        lambda k: 0.4 + 0.6 * np.exp(-0.1 * k),
    ],
)
def test_each_family_is_recovered_ahead_of_its_points(law):
    k = np.arange(12.0)
    fitted = fit(k, law(k))
    assert fitted.at(np.array([18.0]))[0] == pytest.approx(law(18.0), abs=0.03)


def test_newest_points_weigh_most():
    k = np.arange(30.0)
    loss = np.where(k < 15, 1.0, 0.5)
    assert abs(fit(k, loss).at(np.array([30.0]))[0] - 0.5) < 0.12


def test_a_rising_curve_is_predicted_flat_not_falling():
    k = np.arange(8.0)
    fitted = fit(k, 0.5 + 0.1 * k)
    assert fitted.at(np.array([8.0]))[0] - fitted.at(np.array([20.0]))[0] == pytest.approx(0.0, abs=1e-9)


def test_the_asymptote_respects_its_floor():
    k = np.arange(6.0)
    fitted = fit(k, 1.0 - 0.1 * k, floor=0.2)
    assert fitted.limit()[0] >= 0.2 - 1e-9


def test_one_row_does_not_leak_into_another():
    k = np.arange(6.0)
    one = right_aligned([(k, 1 / (k + 1))], 32)
    two = right_aligned([(k, 1 / (k + 1)), (k, 5 - k)], 32)
    alone = fit_curves(*one, np.array([-1.0])).at(np.array([9.0]))
    beside = fit_curves(*two, np.array([-1.0, -1.0])).at(np.array([9.0, 9.0]))
    assert beside[0] == pytest.approx(alone[0], abs=1e-12)


def test_steps_until_flat_falls_as_the_job_goes_on():
    k = np.arange(10.0)
    fitted = fit(k, 0.1 + np.exp(-0.3 * k))
    early = steps_until_flat(fitted, np.array([0.0]), np.array([0.01]), 1e4)[0]
    late = steps_until_flat(fitted, np.array([9.0]), np.array([0.01]), 1e4)[0]
    assert late < early < 60


def test_shapes_start_at_one_and_fall():
    values = shapes(np.array([0.0, 1.0, 10.0, 1e6]))
    assert values[0] == pytest.approx(np.ones(values.shape[1]))
    assert (np.diff(values, axis=0) <= 0).all()
