"""Training utility online: how far a job has come from chance towards the best that its sweep has shown.

    u = clip((B − m) / D, 0, 1),   D = B − F if the sweep declared its target F, else max(FLOOR·|B|, B − best loss seen)

`m` is the job's lowest loss, `B` the sweep's declared chance level, else the median of its first reports (recovering from
a bad start earns nothing, and one absurd report changes nothing). Losses that are not finite earn nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tierline.core.views import Floats, Ints

FLOOR = 0.25  # least range, as a share of |B|: the first 1e-4 of a sweep is not yet "everything that can be had"


class SweepLevels:
    """Per sweep index: chance level B and range D, from declarations and reports."""

    def __init__(self) -> None:
        self._declared_chance: list[float | None] = []
        self._target: list[float | None] = []
        self._firsts: list[list[float]] = []
        self._best: list[float] = []
        self._chance = np.zeros(0)
        self._range = np.ones(0)
        self._stale: set[int] = set()

    def ensure(self, sweep: int) -> None:
        while len(self._best) <= sweep:
            self._declared_chance.append(None)
            self._target.append(None)
            self._firsts.append([])
            self._best.append(math.inf)
            self._chance = np.append(self._chance, 0.0)
            self._range = np.append(self._range, 1.0)

    def declare(self, sweep: int, chance: float | None, target: float | None) -> None:
        self.ensure(sweep)
        self._declared_chance[sweep], self._target[sweep] = chance, target
        self._stale.add(sweep)

    def first_loss(self, sweep: int, loss: float) -> None:
        if self._declared_chance[sweep] is None:
            self._firsts[sweep].append(loss)
            self._stale.add(sweep)

    def loss(self, sweep: int, loss: float) -> None:
        if loss < self._best[sweep]:
            self._best[sweep] = loss
            self._stale.add(sweep)

    def chance(self) -> Floats:
        """B per sweep; NaN before anything is known."""
        self._refresh()
        return self._chance

    def range(self) -> Floats:
        """D per sweep, above 0."""
        self._refresh()
        return self._range

    def utility(self, sweep: Ints, best_loss: Floats) -> Floats:
        """u of jobs with these sweeps and lowest losses (inf = none yet); elementwise, 0 to 1."""
        self._refresh()
        with np.errstate(invalid="ignore"):
            u = (self._chance[sweep] - best_loss) / self._range[sweep]
        return np.asarray(np.clip(np.nan_to_num(u, nan=0.0, neginf=0.0), 0.0, 1.0))

    def _refresh(self) -> None:
        for sweep in self._stale:
            declared, firsts = self._declared_chance[sweep], self._firsts[sweep]
            chance = declared if declared is not None else (float(np.median(firsts)) if firsts else math.nan)
            target = self._target[sweep]
            self._chance[sweep] = chance
            if math.isnan(chance):
                continue
            if target is not None and target < chance:
                self._range[sweep] = chance - target
            else:
                self._range[sweep] = max(FLOOR * abs(chance), chance - self._best[sweep], 1e-12)
        self._stale.clear()

    def dump(self) -> list[list[Any]]:
        columns: Iterable[tuple[Any, ...]] = zip(
            self._declared_chance, self._target, self._firsts, self._best, strict=True
        )
        return [[c, t, f, None if b == math.inf else b] for c, t, f, b in columns]

    def load(self, rows: list[list[Any]]) -> None:
        for sweep, (chance, target, firsts, best) in enumerate(rows):
            self.ensure(sweep)
            self._declared_chance[sweep], self._target[sweep] = chance, target
            self._firsts[sweep] = list(firsts)
            self._best[sweep] = math.inf if best is None else best
            self._stale.add(sweep)
