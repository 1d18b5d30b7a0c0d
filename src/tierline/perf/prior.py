"""Which of a sweep's trials may be worth something, from the hyperparameters of those that have run.

Ridge regression of √u on the rank of every numeric hyperparameter and its square, over all jobs with the same set of
hyperparameters (also of other sweeps, also ended ones). Ranks, so that scales do not matter; squares, since most
hyperparameters have a best value in the middle; √u, since a few runs carry most of the utility.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tierline.core.views import Floats, Ints

RIDGE = 10.0
MIN_JOBS = 10
HISTORY = 8192
Param = tuple[str, float | int | str | bool]


def numeric(params: Sequence[Param]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and values of the numeric hyperparameters, by name."""
    pairs = sorted((name, float(value)) for name, value in params if isinstance(value, int | float))
    finite = [(name, value) for name, value in pairs if np.isfinite(value)]
    return tuple(name for name, _ in finite), tuple(value for _, value in finite)


@dataclass(slots=True)
class SiblingPrior:
    """One group of jobs with the same hyperparameters. Members are appended and never move."""

    names: tuple[str, ...]
    values: list[tuple[float, ...]] = field(default_factory=list)
    sweep: list[int] = field(default_factory=list)
    best_loss: list[float] = field(default_factory=list)
    reports: list[int] = field(default_factory=list)
    factor: Floats = field(default_factory=lambda: np.ones(0))
    fresh_reports: int = 0

    def append(self, values: tuple[float, ...], sweep: int) -> int:
        self.values.append(values)
        self.sweep.append(sweep)
        self.best_loss.append(np.inf)
        self.reports.append(0)
        return len(self.values) - 1

    def observe(self, member: int, best_loss: float) -> None:
        self.best_loss[member] = best_loss
        self.reports[member] += 1
        self.fresh_reports += 1

    def refit_due(self) -> bool:
        """Every few reports at first; for large groups when 1 % of the members have news."""
        return self.fresh_reports > max(5, len(self.values) // 100)

    def refit(self, utility: Floats) -> None:
        """Recompute `factor` (per member, 0.01 to 25, about 1 on average) from each member's utility so far."""
        self.fresh_reports = 0
        seen = np.flatnonzero(np.asarray(self.reports) >= 2)
        if len(seen) < MIN_JOBS or not self.names:
            return
        ranks = _ranks(np.asarray(self.values))
        features = np.column_stack([np.ones(len(ranks)), ranks, ranks * ranks])
        intervals = np.asarray(self.reports)[seen] - 1
        weight = intervals / (intervals + 3.0)
        label = np.sqrt(utility[seen])
        weighted = features[seen] * weight[:, None]
        ridge = np.full(features.shape[1], RIDGE)
        ridge[0] = 0.01
        beta = np.linalg.solve(weighted.T @ features[seen] + np.diag(ridge), weighted.T @ label)
        mean = float((weight * label).sum() / weight.sum())
        self.factor = np.clip((features @ beta + 0.02) / (mean + 0.02), 0.1, 5.0) ** 2

    def of(self, members: Ints) -> Floats:
        """The factor of these members; 1 for those that came after the last fit."""
        padded = np.ones(len(self.values))
        padded[: len(self.factor)] = self.factor
        return padded[members]


def _ranks(values: Floats) -> Floats:
    """Mid-ranks per column, scaled to [−1, 1]."""
    ranks = np.empty_like(values)
    for column in range(values.shape[1]):
        x = values[:, column]
        ordered = np.sort(x)
        ranks[:, column] = (np.searchsorted(ordered, x) + np.searchsorted(ordered, x, side="right")) / len(x) - 1.0
    return ranks
