"""How long an instance takes for what it does: the contract between what predicts it (`perf/`), the simulator, paced
instances, batching policies and the serving scheduler. Seconds, tokens, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

PATCHES_PER_TOKEN = 4
"""Of a tower that merges 2 x 2 patches, as Qwen's: where nobody says otherwise."""


class BatchShape(Struct, frozen=True):
    """What one iteration computes. `chunks`: prompt parts as (new tokens, tokens with KV before them); `decodes` sequences
    of one new token each, `decode_context` the sum of the tokens before them."""

    chunks: tuple[tuple[int, int], ...] = ()
    decodes: int = 0
    decode_context: int = 0


class StageTimes(Protocol):
    """One device with one model. Pure: the same question has the same answer, until the times are fitted anew."""

    @property
    def kv_token_bytes(self) -> int:
        """KV of one position, all layers."""
        ...

    @property
    def embedding_token_bytes(self) -> int:
        """Embedding of one image position."""
        ...

    @property
    def patches_per_token(self) -> int:
        """Patches that the model's encoder makes one position of a prompt from."""
        ...

    @property
    def kv_tokens(self) -> int:
        """Positions that the KV arena of the device holds beside the weights."""
        ...

    def iteration_s(self, batch: BatchShape) -> float:
        """One iteration, mixed ones too, with its overhead on the CPU."""
        ...

    def decodes_s(self, decodes: int, decode_context: int, steps: int) -> float:
        """`steps` iterations that only decode, each sequence one token longer after each: their sum, in closed form or
        equal to the sum of `iteration_s` up to rounding."""
        ...

    def encode_s(self, patches: Sequence[int]) -> float:
        """Images of so many patches each through the encoder in one batch, preparation on the CPU not included."""
        ...

    def slowdown(self, tokens: int) -> float:
        """By which factor an iteration of so many tokens and the encoder slow each other on one device."""
        ...

    def prepare_s(self, patches: int) -> float:
        """What the CPU does to one image before it can be encoded: decode, resize, normalise."""
        ...

    def transfer_s(self, size_bytes: int) -> float:
        """Between two instances: setup and bytes over bandwidth."""
        ...
