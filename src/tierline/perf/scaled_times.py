"""Stage times in which every position stands for several, and every second is stretched: what paced instances are timed by.

Eight H100s compute far more tokens than the two cores that play them. With `positions` 16 a prompt of 100 tokens takes the
time, the KV memory and the bytes of one of 1,600, and so does its context in decoding; a decoding step is still a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from tierline.core.errors import InvalidInput
from tierline.core.stage_times import BatchShape, StageTimes


class ScaledTimes:
    """`core.stage_times.StageTimes` over others. `positions`: of the device for each of ours in prompts, contexts, KV and
    images (1 or more); `stretch`: by how much all times are longer. Raises `InvalidInput`."""

    def __init__(self, times: StageTimes, positions: int = 1, stretch: float = 1.0) -> None:
        if positions < 1:
            raise InvalidInput(f"{positions} positions for one: 1 or more is allowed.")
        if not 0 < stretch < float("inf"):
            raise InvalidInput(f"times stretched by {stretch}: more than 0 is allowed.")
        self._times, self._positions, self._stretch = times, positions, stretch

    @property
    def kv_token_bytes(self) -> int:
        return self._times.kv_token_bytes * self._positions

    @property
    def embedding_token_bytes(self) -> int:
        return self._times.embedding_token_bytes * self._positions

    @property
    def patches_per_token(self) -> int:
        return self._times.patches_per_token

    @property
    def kv_tokens(self) -> int:
        return max(1, self._times.kv_tokens // self._positions)

    def iteration_s(self, batch: BatchShape) -> float:
        scale = self._positions
        chunks = tuple((new * scale, cached * scale) for new, cached in batch.chunks)
        return self._stretch * self._times.iteration_s(BatchShape(chunks, batch.decodes, batch.decode_context * scale))

    def decodes_s(self, decodes: int, decode_context: int, steps: int) -> float:
        """The sum of `iteration_s`. Contexts grow by `positions` a step, which `times` has no closed form for: by the middle
        of the first and the last step, exact where attention is linear in the context."""
        if not decodes or steps <= 0:
            return 0.0
        scale = self._positions
        if scale == 1:
            return self._stretch * self._times.decodes_s(decodes, decode_context, steps)
        # Steps that grow by `scale` at a time: every scale-th of scale times as many that grow by one.
        first, last = decode_context * scale, (decode_context + decodes * (steps - 1)) * scale
        whole = self._times.decodes_s(decodes, first, (steps - 1) * scale + 1)
        ends = sum(self._times.iteration_s(BatchShape((), decodes, context)) for context in (first, last))
        return self._stretch * (ends / 2 + (whole - ends / 2) / scale)

    def encode_s(self, patches: Sequence[int]) -> float:
        return self._stretch * self._times.encode_s([each * self._positions for each in patches])

    def slowdown(self, tokens: int) -> float:
        """Of so many tokens as are played, whatever they stand for: whether of prompts or decodes is not known."""
        return self._times.slowdown(tokens)

    def prepare_s(self, patches: int) -> float:
        return self._stretch * self._times.prepare_s(patches * self._positions)

    def transfer_s(self, size_bytes: int) -> float:
        """`size_bytes` as `kv_token_bytes` and `embedding_token_bytes` count them."""
        return self._stretch * self._times.transfer_s(size_bytes)
