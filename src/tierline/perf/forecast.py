"""The forecasts of all live jobs, kept as columns and fed by their reports. Rows are those of the job table.

One report costs a few scalar writes; a round costs a few numpy calls. Nothing in here knows more than the reports.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tierline.core.nouns import JobKind, Phase
from tierline.core.views import CurveForecast, Floats, Forecast, Ints, JobColumns
from tierline.perf.curves import MIN_POINTS, CurveFit, fit_curves, steps_until_flat
from tierline.perf.density import HORIZONS, ageing, best_average_slope, expected_gain, waking
from tierline.perf.prior import Param, SiblingPrior, numeric
from tierline.perf.utility import SweepLevels

WINDOW = 32  # points kept per job for curve fits; when full, every other old one is dropped
EXPLORE_QUANTA = 5  # a job that does not report counts as explored after so much service
DEPTH = 3.0  # a fitted asymptote lies at most this many times deeper than the loss has fallen so far
FLAT = 0.01  # a curve is flat when what is left to fall is below this share of what it has fallen

_FLOATS = ("first_loss", "best_loss", "last_loss", "step_s", "last_time_s")
_INTS = (
    "sweep",
    "total_steps",
    "reports",
    "first_step",
    "last_step",
    "interval",
    "last_attempt",
    "group",
    "member",
    "points",
)
_BOOLS = ("dead", "exploratory", "stale")  # fmt: skip


class ForecastBank:
    """Columns of forecasting state; `append`, `observe`, `end`, `compact` keep them in step with the job table."""

    def __init__(self) -> None:
        self._n = 0
        self._capacity = 256
        self._float = {name: np.zeros(self._capacity) for name in _FLOATS}
        self._int = {name: np.zeros(self._capacity, np.int64) for name in _INTS}
        self._bool = {name: np.zeros(self._capacity, np.bool_) for name in _BOOLS}
        self._curve_k = np.zeros((self._capacity, WINDOW))
        self._curve_loss = np.zeros((self._capacity, WINDOW))
        self._drop = np.full((self._capacity, len(HORIZONS)), np.nan)  # of the loss, by the last fit
        self._levels = SweepLevels()
        self._groups: list[SiblingPrior] = []
        self._group_of: dict[tuple[str, ...], int] = {}
        self._interval_sum = np.zeros(0)
        self._interval_count = np.zeros(0)

    # ---- what happens ------------------------------------------------------------------------------------------

    def declare(self, sweep: int, chance: float | None, target: float | None) -> None:
        self._ensure_sweep(sweep)
        self._levels.declare(sweep, chance, target)

    def append(self, sweep: int, total_steps: int, params: tuple[Param, ...], kind: JobKind = "exploratory") -> None:
        """A new job in the next row."""
        row = self._n
        if row == self._capacity:
            self._grow()
        self._n += 1
        self._ensure_sweep(sweep)
        names, values = numeric(params)
        group = self._group_of.setdefault(names, len(self._groups))
        if group == len(self._groups):
            self._groups.append(SiblingPrior(names))
        fresh_float = {"first_loss": np.inf, "best_loss": np.inf, "last_loss": np.inf}
        for name, column in self._float.items():
            column[row] = fresh_float.get(name, 0.0)
        fresh_int = {
            "sweep": sweep, "total_steps": total_steps, "last_step": -1, "interval": 1, "group": group,
            "member": self._groups[group].append(values, sweep),
        }  # fmt: skip
        for name, ints in self._int.items():
            ints[row] = fresh_int.get(name, 0)
        for flags in self._bool.values():
            flags[row] = False
        self._drop[row] = np.nan
        self._bool["exploratory"][row] = kind == "exploratory"

    def observe(self, row: int, step: int, loss: float | None, time_ns: int, attempt: int, speed: float) -> None:
        """One report; `speed` of the attempt relative to min_gpus on the slowest type (0 = unknown)."""
        ints, floats, sweep = self._int, self._float, int(self._int["sweep"][row])
        time_s = time_ns / 1e9
        first = ints["reports"][row] == 0
        if first:
            ints["first_step"][row] = step
        elif step > ints["last_step"][row] and attempt == ints["last_attempt"][row] and speed > 0:
            steps = step - int(ints["last_step"][row])
            self._learn_interval(row, sweep, steps, (time_s - float(floats["last_time_s"][row])) * speed / steps)
        ints["reports"][row] += 1
        ints["last_step"][row] = max(step, int(ints["last_step"][row]))
        ints["last_attempt"][row] = attempt
        floats["last_time_s"][row] = time_s
        self._bool["dead"][row] = loss is None
        if loss is not None:
            if floats["first_loss"][row] == np.inf:
                floats["first_loss"][row] = loss
                self._levels.first_loss(sweep, loss)
            floats["last_loss"][row] = loss
            if loss < floats["best_loss"][row]:
                floats["best_loss"][row] = loss
                self._levels.loss(sweep, loss)
            self._keep_point(row, step, loss)
        self._groups[ints["group"][row]].observe(int(ints["member"][row]), float(floats["best_loss"][row]))

    def end(self, row: int, phase: Phase) -> None:
        """The job is over; what it has taught stays with its siblings."""
        self._bool["dead"][row] = True

    def compact(self, keep: Ints) -> None:
        for table in (self._float, self._int, self._bool):
            for column in table.values():
                column[: len(keep)] = column[keep]
        self._curve_k[: len(keep)] = self._curve_k[keep]
        self._curve_loss[: len(keep)] = self._curve_loss[keep]
        self._drop[: len(keep)] = self._drop[keep]
        self._n = len(keep)

    # ---- what is asked -----------------------------------------------------------------------------------------

    def utility(self, row: int) -> float | None:
        """Utility so far of one job; None before its first finite report."""
        best = self._float["best_loss"][row : row + 1]
        return (
            None
            if not np.isfinite(best[0])
            else float(self._levels.utility(self._int["sweep"][row : row + 1], best)[0])
        )

    def forecast(self, jobs: JobColumns, now_ns: int, quantum_s: float, restart_s: float, *, curves: bool) -> Forecast:
        """Forecasts of all rows (J)."""
        n = self._n
        floats = {name: column[:n] for name, column in self._float.items()}
        ints = {name: column[:n] for name, column in self._int.items()}
        sweep, step_s = ints["sweep"], floats["step_s"]
        utility = self._levels.utility(sweep, floats["best_loss"])
        first_utility = self._levels.utility(sweep, floats["first_loss"])
        span = self._levels.range()[sweep]
        with np.errstate(invalid="ignore"):
            excess = np.maximum(floats["last_loss"] - self._levels.chance()[sweep], 0.0) / span
        excess = np.where(ints["reports"] == 0, 0.0, np.nan_to_num(excess, nan=0.0, posinf=1e3))

        unit_s = self._unit_s(ints, step_s, quantum_s)
        attained_s = jobs.attained_gpu_ns / 1e9 / jobs.min_gpus
        worked_s = np.where(step_s > 0, (ints["last_step"] - ints["first_step"]) * step_s, attained_s)
        life_s = np.maximum(worked_s, unit_s)
        known = (ints["total_steps"] > 0) & (step_s > 0)
        left_s = np.where(known, np.maximum(ints["total_steps"] - ints["last_step"], 0) * step_s, np.inf)
        pending_s = self._restart_pending_s(jobs, now_ns, restart_s)
        t_s = np.minimum(HORIZONS * unit_s[:, None], left_s[:, None])
        self._refit(t_s)
        gain = expected_gain(
            utility - first_utility,
            waking(utility, excess, self._prior()),
            np.minimum(self._drop[:n] / span[:, None], 1.0),
            ageing(t_s, life_s),
        )
        density = best_average_slope(gain, t_s, pending_s)
        per_interval = (gain / HORIZONS).max(axis=1)
        # A job without losses to judge it by is worth its completion; expect as long again as it has taken.
        silent = ~self._bool["exploratory"][:n] & ~np.isfinite(floats["best_loss"])
        rest_s = np.where(np.isfinite(left_s), left_s, life_s)
        density = np.where(silent, 1.0 / np.maximum(rest_s + pending_s, quantum_s), density)
        per_interval = np.where(silent, 1.0, per_interval)
        dead = self._bool["dead"][:n]
        unexplored = (ints["reports"] < 2) & (attained_s < EXPLORE_QUANTA * quantum_s) & ~dead & ~silent
        return Forecast(
            utility=utility,
            density=np.where(dead, 0.0, density / jobs.min_gpus),
            gain=np.where(dead, 0.0, per_interval),
            unexplored=unexplored,
            step_s=step_s,
            curves=self._curves(left_s, quantum_s) if curves else None,
        )

    # ---- parts -------------------------------------------------------------------------------------------------

    def _learn_interval(self, row: int, sweep: int, steps: int, step_s: float) -> None:
        if step_s <= 0:
            return
        before = float(self._float["step_s"][row])
        new = step_s if before == 0 else 0.7 * before + 0.3 * step_s
        old_interval = before * float(self._int["interval"][row])
        self._int["interval"][row] = steps
        self._float["step_s"][row] = new
        self._interval_sum[sweep] += new * steps - old_interval
        self._interval_count[sweep] += before == 0

    def _unit_s(self, ints: dict[str, Ints], step_s: Floats, quantum_s: float) -> Floats:
        """Shortest horizon worth looking at: a report interval (the sweep's mean before a job has its own), a quantum."""
        count = self._interval_count
        mean = np.divide(self._interval_sum, count, out=np.full(len(count), quantum_s), where=count > 0)
        own = np.where(step_s > 0, step_s * ints["interval"], mean[ints["sweep"]])
        return np.maximum(own, quantum_s)

    def _restart_pending_s(self, jobs: JobColumns, now_ns: int, restart_s: float) -> Floats:
        """Seconds of restart ahead: all of it for a suspended job, the rest of it for one that was just resumed."""
        rest_s = np.maximum(restart_s - (now_ns - jobs.started_ns) / 1e9, 0.0) * (jobs.restarts > 0)
        suspended = np.where(jobs.attained_gpu_ns > 0, restart_s, 0.0)
        return np.where(jobs.running, rest_s, suspended)

    def _prior(self) -> Floats:
        group, member = self._int["group"][: self._n], self._int["member"][: self._n]
        factor = np.ones(self._n)
        for index, prior in enumerate(self._groups):
            if prior.refit_due():
                sweeps = np.asarray(prior.sweep, dtype=np.int64)
                prior.refit(self._levels.utility(sweeps, np.asarray(prior.best_loss)))
            if len(prior.factor):
                rows = np.flatnonzero(group == index)
                factor[rows] = prior.of(member[rows])
        return factor

    def _refit(self, t_s: Floats) -> None:
        """Fit the curves of jobs with news, and keep the drop of the loss that they promise within each horizon."""
        rows = np.flatnonzero(self._bool["stale"][: self._n])
        self._bool["stale"][rows] = False
        rows = rows[self._int["points"][rows] >= MIN_POINTS]
        if not len(rows):
            return
        k, interval_s, _, fit = self._fit(rows)
        here = fit.at(k)
        for column in range(len(HORIZONS)):
            there = fit.at(k + t_s[rows, column] / interval_s)
            self._drop[rows, column] = np.maximum(here - there, 0.0)

    def _curves(self, left_s: Floats, quantum_s: float) -> CurveForecast:
        n = self._n
        rows = np.flatnonzero(self._int["points"][:n] >= MIN_POINTS)
        loss_drop = np.ones(n)
        asymptote = np.full(n, np.nan)
        flat_s = np.full(n, np.inf)
        if len(rows):
            k, interval_s, fallen, fit = self._fit(rows)
            drop = fit.at(k) - fit.at(k + quantum_s / interval_s)
            loss_drop[rows] = np.clip(drop / fallen, 0.0, 1.0)
            asymptote[rows] = fit.limit()
            flat_s[rows] = steps_until_flat(fit, k, FLAT * fallen, 1e4) * interval_s
        rest_s = np.minimum(flat_s, left_s)
        unknown = ~np.isfinite(rest_s)
        typical = float(np.median(rest_s[~unknown])) if (~unknown).any() else 10 * quantum_s
        dead = self._bool["dead"][:n]
        return CurveForecast(
            loss_drop=np.where(dead, 0.0, loss_drop),
            remaining_s=np.where(unknown, typical, rest_s),
            asymptote=asymptote,
        )

    def _fit(self, rows: Ints) -> tuple[Floats, Floats, Floats, CurveFit]:
        """(position, seconds) in report intervals, how far the loss has fallen, and the fits, of these rows."""
        ints, floats = self._int, self._float
        interval = np.maximum(ints["interval"][rows], 1)
        first = ints["first_step"][rows]
        valid = np.arange(WINDOW) >= WINDOW - np.minimum(ints["points"][rows], WINDOW)[:, None]
        k = np.where(valid, (self._curve_k[rows] - first[:, None]) / interval[:, None], 0.0)
        k = np.maximum(k, 0.0)  # a job that fell back behind its first report (it lost a checkpoint) starts anew
        fallen = np.maximum(floats["first_loss"][rows] - floats["best_loss"][rows], 1e-12)
        floor = floats["best_loss"][rows] - DEPTH * fallen
        fit = fit_curves(k, self._curve_loss[rows], valid.astype(np.float64), floor)
        position = np.maximum(ints["last_step"][rows] - first, 0) / interval
        return position, np.maximum(floats["step_s"][rows] * interval, 1e-9), fallen, fit

    def _keep_point(self, row: int, step: int, loss: float) -> None:
        """Append to the row's window (right-aligned); when it is full, drop every other old point."""
        k, losses = self._curve_k[row], self._curve_loss[row]
        points = int(self._int["points"][row])
        if points == WINDOW:
            half = WINDOW // 2
            k[half:], losses[half:] = k[1::2].copy(), losses[1::2].copy()
            points = half
        k[:-1], losses[:-1] = k[1:].copy(), losses[1:].copy()
        k[-1], losses[-1] = step, loss
        self._int["points"][row] = points + 1
        self._bool["stale"][row] = True

    def _ensure_sweep(self, sweep: int) -> None:
        self._levels.ensure(sweep)
        missing = sweep + 1 - len(self._interval_sum)
        if missing > 0:
            self._interval_sum = np.append(self._interval_sum, np.zeros(missing))
            self._interval_count = np.append(self._interval_count, np.zeros(missing))

    def _grow(self) -> None:
        self._capacity *= 2
        for table in (self._float, self._int, self._bool):
            for name, column in table.items():
                table[name] = np.resize(column, self._capacity)
        self._curve_k = np.resize(self._curve_k, (self._capacity, WINDOW))
        self._curve_loss = np.resize(self._curve_loss, (self._capacity, WINDOW))
        self._drop = np.resize(self._drop, (self._capacity, len(HORIZONS)))

    # ---- snapshots ---------------------------------------------------------------------------------------------

    def _columns(self) -> dict[str, NDArray[Any]]:
        windows = {"curve_k": self._curve_k, "curve_loss": self._curve_loss, "drop": self._drop}
        return {**self._float, **self._int, **self._bool, **windows}

    def dump(self) -> dict[str, Any]:
        """The state as JSON-able types; arrays as base64 of their bytes, so that they come back bit for bit."""
        n = self._n
        columns = self._columns()
        return {
            "n": n,
            "columns": {name: base64.b64encode(column[:n].tobytes()).decode() for name, column in columns.items()},
            "levels": self._levels.dump(),
            "interval_sum": self._interval_sum.tolist(),
            "interval_count": self._interval_count.tolist(),
            "groups": [
                {
                    "names": list(g.names),
                    "values": [list(v) for v in g.values],
                    "sweep": g.sweep,
                    "best_loss": [None if b == np.inf else b for b in g.best_loss],
                    "reports": g.reports,
                    "factor": g.factor.tolist(),
                    "fresh_reports": g.fresh_reports,
                }
                for g in self._groups
            ],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Into a fresh bank."""
        n = int(state["n"])
        while self._capacity < n:
            self._grow()
        self._n = n
        columns = self._columns()
        for name, column in columns.items():
            flat = np.frombuffer(base64.b64decode(state["columns"][name]), dtype=column.dtype)
            column[:n] = flat.reshape(column[:n].shape)
        self._levels.load(state["levels"])
        self._interval_sum = np.array(state["interval_sum"], dtype=np.float64)
        self._interval_count = np.array(state["interval_count"], dtype=np.float64)
        for g in state["groups"]:
            prior = SiblingPrior(
                tuple(g["names"]), [tuple(v) for v in g["values"]], list(g["sweep"]),
                [np.inf if b is None else b for b in g["best_loss"]], list(g["reports"]),
                np.array(g["factor"], dtype=np.float64), int(g["fresh_reports"]),
            )  # fmt: skip
            self._group_of[prior.names] = len(self._groups)
            self._groups.append(prior)
