"""Speed of an elastic job at n GPUs, from measured points, else from Optimus' model of synchronous training.

Source: Peng et al., Optimus (EuroSys'18), section 3.2, the synchronous model; without parameter servers and with a fixed
global batch its time per step is `t(n) = a/n + b + c·(n − 1)/n`: compute, fixed cost, and the ring of an all-reduce.
"""

from __future__ import annotations

import numpy as np

from tierline.core.views import Floats


def speedup_curve(points: tuple[tuple[int, float], ...], min_gpus: int, max_gpus: int) -> Floats | None:
    """Speed at 0..max_gpus relative to the speed at `min_gpus`; None for a job of one size.

    Returns an array of length max_gpus + 1: 0 below `min_gpus`, 1 at `min_gpus`, concave and non-decreasing above, so
    that handing out GPUs one by one by marginal gain is optimal. With fewer than three measured points the model's
    default is linear up to 90 % efficiency per doubling. Raises ValueError for a speed that is not positive.
    """
    if max_gpus <= min_gpus:
        return None
    n = np.arange(max_gpus + 1, dtype=np.float64)
    measured = dict(points)
    if any(v <= 0 for v in measured.values()):
        raise ValueError("a measured speed must be above 0")
    if len(measured) >= 2:
        known = np.array(sorted(measured), dtype=np.float64)
        speed = np.array([measured[int(k)] for k in known])
        step_s = sync_step_time(known, speed, n) if len(known) >= 3 else None
        curve = np.interp(n, known, speed)
        if step_s is not None:  # between and beyond measured points the model; at them what was measured
            beyond = (n > known[-1]) | (n < known[0])
            curve[beyond] = 1.0 / step_s[beyond]
    else:
        curve = np.where(n > 0, np.maximum(n, 1.0) ** np.log2(1.8), 0.0)
    curve = np.maximum(curve, 1e-9)
    curve = curve / curve[min_gpus]
    curve[:min_gpus] = 0.0
    curve[min_gpus:] = _concave(curve[min_gpus:])
    return np.asarray(curve, dtype=np.float64)


def sync_step_time(gpus: Floats, speed: Floats, at: Floats) -> Floats:
    """Step time (relative) at `at` GPUs from a non-negative fit of `a/n + b + c·(n−1)/n` to measured speeds."""
    from scipy.optimize import nnls  # half a second, which every command that knows the job tier would wait

    design = np.stack([1.0 / gpus, np.ones_like(gpus), (gpus - 1.0) / gpus], axis=1)
    coefficients, _ = nnls(design, 1.0 / speed)
    n = np.maximum(at, 1.0)
    fitted = np.stack([1.0 / n, np.ones_like(n), (n - 1.0) / n], axis=1) @ coefficients
    return np.asarray(np.maximum(fitted, 1e-9), dtype=np.float64)


def _concave(curve: Floats) -> Floats:
    """Least concave non-decreasing majorant's increments: sorted gains keep the total and are never negative."""
    gains = np.maximum(np.diff(curve), 0.0)
    # Pool adjacent violators: a GPU that only pays together with the next one is priced at their mean.
    pooled: list[tuple[float, int]] = []
    for gain in gains:
        total, count = float(gain), 1
        while pooled and pooled[-1][0] / pooled[-1][1] < total / count:
            before, size = pooled.pop()
            total, count = total + before, count + size
        pooled.append((total, count))
    flat = [total / count for total, count in pooled for _ in range(count)]
    return np.concatenate([curve[:1], curve[0] + np.cumsum(flat)])
