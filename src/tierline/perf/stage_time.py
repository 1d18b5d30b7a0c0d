"""How long stages take: one model of an iteration for every batch, mixed ones too.

    T = matrices(all tokens) + output layer(sequences) + sum over chunks of context attention(new, cached)
        + generation attention(sum of contexts, sequences) + overhead

and the encoder apart. `OperatorTimes` reads each part from curves (measured operators, summed over a model's layers),
`LinearTimes` (`perf/stage_time_linear.py`) from coefficients that a machine was calibrated to.
"""

from __future__ import annotations

from collections.abc import Sequence

from tierline.core.errors import InvalidInput
from tierline.core.stage_times import BatchShape
from tierline.perf.curves_of_time import Curve, Knots
from tierline.perf.device_sharing import Overlap
from tierline.perf.serving_profile import EncoderOperators, ServingProfile

DENSE_TOKENS = 4096  # times up to so many tokens lie in a list
QUERY_TILE = 128  # rows that an attention kernel computes at a time, whether they are used or not


class OperatorTimes:
    """`core.stage_times.StageTimes` over a profile's curves. Immutable but for curves of generation attention, which are made
    when a number of sequences is first asked for."""

    def __init__(self, profile: ServingProfile) -> None:
        operators = profile.operators
        assert operators is not None, "a profile with [operators]"
        self.profile = profile
        self._memory, self._transfer, self._preparation = profile.memory, profile.transfer, profile.preparation
        self._iteration_s = profile.overhead.iteration_s
        self._sequence_s = profile.overhead.sequence_s
        self._matrices = Curve(operators.matrices)
        self._tokens_s = [0.0, *(self._matrices.at(tokens) for tokens in range(1, DENSE_TOKENS + 1))]
        self._head = Curve(operators.head)
        self._head_s = [0.0, *(self._head.at(rows) for rows in range(1, 513))]
        self._context = Curve(operators.context)
        self._launch_s = operators.launch_s
        self._least_rows = QUERY_TILE / operators.group  # query heads of a group fill a tile together
        self._generation = operators.generation
        self._by_sequences: dict[int, Curve] = {}
        self._overlap = profile.overlap or Overlap()
        self._encoder = None if operators.encoder is None else _Encoder(operators.encoder, profile.overhead.encode_s)

    # --- sizes

    @property
    def kv_token_bytes(self) -> int:
        return self._memory.kv_token_bytes

    @property
    def embedding_token_bytes(self) -> int:
        return self._memory.embedding_token_bytes

    @property
    def patches_per_token(self) -> int:
        return self.profile.patches_per_token

    @property
    def kv_tokens(self) -> int:
        return self._memory.kv_tokens

    # --- times

    def iteration_s(self, batch: BatchShape) -> float:
        """Seconds of one iteration; 0 for an empty one. O(chunks · log knots)."""
        decodes, chunks = batch.decodes, batch.chunks
        rows = decodes + len(chunks)
        if not rows:
            return 0.0
        tokens, found = decodes, self._iteration_s + rows * self._sequence_s
        for new, cached in chunks:
            tokens += new
            found += self._context.at(new * (new + 1) / 2 + max(new, self._least_rows) * cached)
        if decodes:
            found += self._of_sequences(decodes).at(batch.decode_context / decodes)
        else:
            found += self._launch_s
        found += self._tokens_s[tokens] if tokens <= DENSE_TOKENS else self._matrices.at(tokens)
        return found + (self._head_s[rows] if rows < 513 else self._head.at(rows))

    def parts(self, batch: BatchShape) -> tuple[float, ...]:
        """The terms that `iteration_s` adds up: overhead, matrices, output layer, context and generation attention."""
        decodes, chunks = batch.decodes, batch.chunks
        rows = decodes + len(chunks)
        if not rows:
            return (0.0,) * 5
        context = sum(
            self._context.at(new * (new + 1) / 2 + max(new, self._least_rows) * cached) for new, cached in chunks
        )
        return (
            self._iteration_s + rows * self._sequence_s,
            self._matrices.at(decodes + sum(new for new, _ in chunks)),
            self._head.at(rows),
            context + (0.0 if decodes else self._launch_s),
            self._of_sequences(decodes).at(batch.decode_context / decodes) if decodes else 0.0,
        )

    def decodes_s(self, decodes: int, decode_context: int, steps: int) -> float:
        """Seconds of `steps` iterations that only decode: a sum a piece of the curve, so O(1) in `steps`."""
        if not decodes or steps <= 0:
            return 0.0
        curve, mean = self._of_sequences(decodes), decode_context / decodes
        fixed = self._iteration_s + decodes * self._sequence_s
        fixed += self._tokens_s[decodes] if decodes <= DENSE_TOKENS else self._matrices.at(decodes)
        fixed += self._head_s[decodes] if decodes < 513 else self._head.at(decodes)
        return fixed + curve.at(mean) if steps == 1 else fixed * steps + curve.total(mean, 1.0, steps)

    def encode_s(self, patches: Sequence[int]) -> float:
        """Seconds of one batch of images. Raises `InvalidInput` where nothing is known of an encoder."""
        if self._encoder is None:
            raise InvalidInput(_no_encoder(self.profile))
        return self._encoder.seconds(patches)

    def slowdown(self, tokens: int) -> float:
        return self._overlap.slowdown(tokens)

    def prepare_s(self, patches: int) -> float:
        return self._preparation.image_s + patches * self._preparation.patch_s

    def transfer_s(self, size_bytes: int) -> float:
        return self._transfer.setup_s + size_bytes / self._transfer.bytes_per_s

    def _of_sequences(self, decodes: int) -> Curve:
        """Generation attention over the mean context of so many sequences: between the measured numbers of them."""
        curve = self._by_sequences.get(decodes)
        if curve is None:
            curve = self._by_sequences[decodes] = Curve(self._between(decodes))
        return curve

    def _between(self, decodes: int) -> Knots:
        known = self._generation
        above = next((place for place, each in enumerate(known) if each.sequences >= decodes), len(known))
        if above == len(known):  # more than were measured: in proportion
            last = known[-1]
            times = decodes / last.sequences
            return Knots(last.context.sizes, tuple(each * times for each in last.context.seconds))
        high = known[above]
        if high.sequences == decodes or not above:
            return high.context
        low = known[above - 1]
        part = (decodes - low.sequences) / (high.sequences - low.sequences)
        sizes = sorted({*low.context.sizes, *high.context.sizes})
        below, over = Curve(low.context), Curve(high.context)
        return Knots(tuple(sizes), tuple((1 - part) * below.at(size) + part * over.at(size) for size in sizes))


class _Encoder:
    def __init__(self, operators: EncoderOperators, overhead_s: float) -> None:
        self._fixed_s = overhead_s + operators.launch_s
        self._matrices, self._attention = Curve(operators.matrices), Curve(operators.attention)
        self._window_patches = operators.window_patches
        self._windows = None if operators.windows is None else Curve(operators.windows)

    def seconds(self, patches: Sequence[int]) -> float:
        if not patches:
            return 0.0
        found = self._fixed_s + self._matrices.at(sum(patches))
        for each in patches:
            found += self._attention.at(each)
        if self._windows is not None:
            found += self._windows.at(sum(-(-each // self._window_patches) for each in patches))
        return found


def _no_encoder(profile: ServingProfile) -> str:
    return (
        f"device '{profile.device}' with model '{profile.model}': nothing is known of an encoder, so no image can be timed; "
        "h100, h200 and l40s with a model that takes images, or a calibrated profile is needed."
    )
