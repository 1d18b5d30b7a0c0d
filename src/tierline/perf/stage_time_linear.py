"""Stage times by coefficients that a machine was calibrated to: the same iteration model, each part a straight line.

    T = a + b tokens + b' max(0, tokens - knee) + c pairs + d sequences + e context + f [there are prompts]

`pairs`: (new token, token before it or itself) in prompt chunks. Tokens beyond the knee are bound by arithmetic.
An engine has a shorter way for iterations that only decode: the others pay f.
"""

from __future__ import annotations

from collections.abc import Sequence

from tierline.core.errors import InvalidInput
from tierline.core.stage_times import BatchShape
from tierline.perf.device_sharing import Overlap
from tierline.perf.serving_profile import ServingProfile

PARTS = ("iteration", "prompts", "tokens", "tokens beyond the knee", "pairs", "sequences", "context")


class LinearTimes:
    """`core.stage_times.StageTimes` over a profile's coefficients. Immutable."""

    def __init__(self, profile: ServingProfile) -> None:
        assert profile.linear is not None, "a profile with [linear]"
        self.profile = profile
        self._of = profile.linear
        self._overlap = profile.overlap or Overlap()

    # --- sizes

    @property
    def kv_token_bytes(self) -> int:
        return self.profile.memory.kv_token_bytes

    @property
    def embedding_token_bytes(self) -> int:
        return self.profile.memory.embedding_token_bytes

    @property
    def patches_per_token(self) -> int:
        return self.profile.patches_per_token

    @property
    def kv_tokens(self) -> int:
        return self.profile.memory.kv_tokens

    # --- times

    def iteration_s(self, batch: BatchShape) -> float:
        """Seconds of one iteration; 0 for an empty one."""
        of, decodes = self._of, batch.decodes
        rows = decodes + len(batch.chunks)
        if not rows:
            return 0.0
        tokens, found = decodes, of.iteration_s + rows * of.sequence_s + batch.decode_context * of.context_s
        if batch.chunks:
            found += of.prompts_s
        for new, cached in batch.chunks:
            tokens += new
            found += new * (cached + (new + 1) / 2) * of.pair_s
        return found + tokens * of.token_s + max(0, tokens - of.knee_tokens) * of.token_beyond_s

    def parts(self, batch: BatchShape) -> tuple[float, ...]:
        """The terms that `iteration_s` adds up, as in `PARTS`."""
        of = self._of
        rows = batch.decodes + len(batch.chunks)
        tokens = batch.decodes + sum(new for new, _ in batch.chunks)
        pairs = sum(new * (cached + (new + 1) / 2) for new, cached in batch.chunks)
        return (
            of.iteration_s if rows else 0.0,
            of.prompts_s if batch.chunks else 0.0,
            tokens * of.token_s,
            max(0, tokens - of.knee_tokens) * of.token_beyond_s,
            pairs * of.pair_s,
            rows * of.sequence_s,
            batch.decode_context * of.context_s,
        )

    def decodes_s(self, decodes: int, decode_context: int, steps: int) -> float:
        """Seconds of `steps` iterations that only decode: `n T + e decodes n (n - 1) / 2`."""
        if not decodes or steps <= 0:
            return 0.0
        first = self.iteration_s(BatchShape((), decodes, decode_context))
        return steps * first + self._of.context_s * decodes * (steps * (steps - 1) / 2)

    def encode_s(self, patches: Sequence[int]) -> float:
        """Seconds of one batch of images. Raises `InvalidInput` where nothing is known of an encoder."""
        of = self._of
        if not self.profile.encodes:
            raise InvalidInput(
                f"the profile of model '{self.profile.model}' knows of no encoder, so no image can be timed; calibrate a "
                "model that takes images."
            )
        if not patches:
            return 0.0
        return of.encode_s + sum(each * (of.patch_s + each * of.patch_pair_s) for each in patches)

    def slowdown(self, tokens: int) -> float:
        return self._overlap.slowdown(tokens)

    def prepare_s(self, patches: int) -> float:
        return self.profile.preparation.image_s + patches * self.profile.preparation.patch_s

    def transfer_s(self, size_bytes: int) -> float:
        return self.profile.transfer.setup_s + size_bytes / self.profile.transfer.bytes_per_s
