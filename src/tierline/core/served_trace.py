"""A serving workload as facts: who asks for what, when, and how long the answer will be. Only simulators and load
generators read `output_tokens`; schedulers and policies never see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TracedImage:
    """`content_hash`: the same picture has the same. `tokens`: placeholders it takes in a prompt; `patches`: positions its
    encoder computes (0 = as many a token as the model has)."""

    content_hash: str
    tokens: int
    patches: int = 0

    def encoder_patches(self, patches_per_token: int) -> int:
        return self.patches or patches_per_token * self.tokens


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """`text_tokens` are the prompt's without its images', which come first, after the shared prefix. `prefix` names text
    that other requests begin with too, as (key, tokens) from the start on: two requests share KV as far as these agree; it
    is part of `text_tokens`. `stream`: which client or trace it came from."""

    arrived_ns: int
    text_tokens: int
    output_tokens: int
    images: tuple[TracedImage, ...] = ()
    prefix: tuple[tuple[str, int], ...] = ()
    priority: int = 0
    stream: str = ""

    @property
    def prompt_tokens(self) -> int:
        """Text and images together."""
        return self.text_tokens + sum(image.tokens for image in self.images)


@dataclass(frozen=True, slots=True)
class ServedTrace:
    """Requests by time of arrival. `workload_hash`: of everything in them, so that two studies can be compared."""

    source: str
    requests: tuple[TracedRequest, ...]
    workload_hash: str
