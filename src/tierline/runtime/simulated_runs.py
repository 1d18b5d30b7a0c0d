"""What simulations of every tier do with their runs: a journal of lines, a pool of processes, the spread over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import numpy as np
from scipy.special import stdtrit

from tierline.core.actions import Action
from tierline.core.errors import InvalidInput
from tierline.core.events import Event
from tierline.runtime.codec import encode_actions, encode_event

Finished = TypeVar("Finished")


class LinesJournal:
    """A `Journal` that writes one JSON object a line: time_ns, event and actions, as `tierline replay` names them."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: IO[str] = path.open("w", encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"--events '{path}' cannot be written: {error.strerror}.") from error

    def __enter__(self) -> LinesJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        for time_ns, event, actions in entries:
            kind, body = encode_event(event)
            row = {"time_ns": time_ns, "kind": kind, "event": json.loads(body)}
            row["actions"] = json.loads(encode_actions(actions))
            self._file.write(json.dumps(row, separators=(",", ":")) + "\n")


def run_tasks(
    run: Callable[..., Finished], tasks: Sequence[tuple[Any, ...]], workers: int, on_run: Callable[[Finished], None]
) -> list[Finished]:
    """`run(*task)` for each task, in up to `workers` processes; `on_run` is called as each one is done."""
    if workers <= 1 or len(tasks) == 1:
        runs = []
        for task in tasks:
            runs.append(run(*task))
            on_run(runs[-1])
        return runs
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                on_run(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over seeds and half the width of its 95 % interval (Student's t; 0.0 for one seed)."""

    mean: float
    half: float


def spread(values: Iterable[float]) -> Spread:
    numbers = np.array(list(values), dtype=np.float64)
    if len(numbers) < 2:
        return Spread(float(numbers.mean()), 0.0)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return Spread(float(numbers.mean()), float(stdtrit(len(numbers) - 1, 0.975)) * error)
