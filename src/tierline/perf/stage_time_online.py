"""Stage times that follow what is seen: one factor for each part of an iteration (`perf/parts_fit.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tierline.core.stage_times import BatchShape, StageTimes
from tierline.perf.parts_fit import PartsFit
from tierline.perf.serving_profile import ServingProfile


class PartedTimes(StageTimes, Protocol):
    """Stage times whose iterations are a sum of parts, in a fixed order."""

    @property
    def profile(self) -> ServingProfile: ...

    def parts(self, batch: BatchShape) -> tuple[float, ...]:
        """The terms that `iteration_s` adds up."""
        ...


class OnlineTimes:
    """`core.stage_times.StageTimes` over others; `observe` changes what it predicts from then on. `version` rises when that
    has changed enough to matter, so that whoever keeps answers knows when to ask again."""

    def __init__(self, times: PartedTimes) -> None:
        self._times = times
        self._fit = PartsFit(len(times.parts(BatchShape(decodes=1))))

    # --- what was seen

    @property
    def version(self) -> int:
        return self._fit.version

    @property
    def factors(self) -> tuple[float, ...]:
        """By which the parts of an iteration are multiplied."""
        return tuple(self._fit.factors)

    def observe(self, batch: BatchShape, seconds: float) -> None:
        """An iteration took so long."""
        self._fit.observe(self._times.parts(batch), seconds)

    # --- sizes

    @property
    def profile(self) -> ServingProfile:
        return self._times.profile

    @property
    def kv_token_bytes(self) -> int:
        return self._times.kv_token_bytes

    @property
    def embedding_token_bytes(self) -> int:
        return self._times.embedding_token_bytes

    @property
    def patches_per_token(self) -> int:
        return self._times.patches_per_token

    @property
    def kv_tokens(self) -> int:
        return self._times.kv_tokens

    # --- times

    def iteration_s(self, batch: BatchShape) -> float:
        return sum(map(float.__mul__, self._times.parts(batch), self._fit.factors))

    def decodes_s(self, decodes: int, decode_context: int, steps: int) -> float:
        """The closed form of `times`, times the factor of its first and last iteration together: the sum of `iteration_s`
        where attention is linear in the context."""
        plain = self._times.decodes_s(decodes, decode_context, steps)
        if not plain:
            return 0.0
        batches = [BatchShape((), decodes, decode_context + decodes * place) for place in (0, steps - 1)]
        return plain * sum(map(self.iteration_s, batches)) / sum(map(self._times.iteration_s, batches))

    def encode_s(self, patches: Sequence[int]) -> float:
        return self._times.encode_s(patches)

    def slowdown(self, tokens: int) -> float:
        return self._times.slowdown(tokens)

    def prepare_s(self, patches: int) -> float:
        return self._times.prepare_s(patches)

    def transfer_s(self, size_bytes: int) -> float:
        return self._times.transfer_s(size_bytes)
