"""What a routing policy sees of a request and of the instances, and what it answers. No true output length and no limit of
one is in here: a policy that saw `max_tokens` would see a client's guess, and often the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

from msgspec import Struct, field

from tierline.core.request import Role

Modality = Literal["text", "multimodal"]
Group = Literal["text", "multimodal", "shared"]
MODALITIES: tuple[Modality, Modality] = ("text", "multimodal")
WAIT = ""  # a routing policy's answer: no instance yet


class RequestView(Struct, frozen=True):
    """One request as policies see it. `prompt_tokens`: positions to be computed, those of images and of output made before
    a loss included. `submitted_ns` and `deadline_ns` (of the first token) are of the scheduler's clock. `prefill_s`,
    `encode_s`: predicted for it alone, nothing cached. `home`: where its prompt is or will be ("" = not decided). `cached`:
    by instance, so many of its first tokens probably have KV there; `embedded`: so many of its image tokens have their
    embeddings there. Both are filled where the policy `wants_affinity`."""

    request_id: str
    submitted_ns: int = 0
    priority: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    images: int = 0
    output_tokens: int = 0
    deadline_ns: int = 0
    prefill_s: float = 0.0
    encode_s: float = 0.0
    home: str = ""
    cached: Mapping[str, int] = field(default_factory=dict)
    embedded: Mapping[str, int] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        return "multimodal" if self.images else "text"


class InstanceView(Struct, frozen=True):
    """One instance that may be chosen. `prefill_tokens`: prompt tokens sent there and not done; `decoding`: sequences past
    their prompt, those under way there included; `encoding`: images sent there and not done; `free_blocks` as last told.
    `prompts`: requests sent there whose prompt is not done; `prefill_s`, `encode_s`: predicted for what was sent there and is
    not done, by itself; `context_tokens`: positions of its `decoding` sequences; `decode_s`: predicted iteration of these.
    `barred`: of its `prompts`, those whose images are still under way; `barred_tokens`, `barred_s`: what these are of
    `prefill_tokens` and `prefill_s`. `texts`, `texts_s`: of its `prompts` and `prefill_s`, those without images."""

    name: str
    roles: Role
    prefill_tokens: int
    decoding: int
    encoding: int
    free_blocks: int
    total_blocks: int
    group: Group = "shared"
    prompts: int = 0
    prefill_s: float = 0.0
    encode_s: float = 0.0
    context_tokens: int = 0
    decode_s: float = 0.0
    barred: int = 0
    barred_tokens: int = 0
    barred_s: float = 0.0
    texts: int = 0
    texts_s: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do for a request."""
        return not (self.prompts or self.decoding or self.encoding)


class RoutingPolicy(Protocol):
    """Chooses an instance for a stage. Pure but for its own declared memory.

    `late`: may answer `WAIT` for a prompt or a decode, which then waits in the scheduler and is asked for again when an
    instance has news, then with that instance alone; where every instance of the fleet is idle, one takes the
    request all the same. Images are always placed. `wants_affinity`: reads `cached` and `embedded`.
    """

    late: ClassVar[bool]
    wants_affinity: ClassVar[bool]

    def choose(self, stage: Role, instances: tuple[InstanceView, ...], request: RequestView, now_ns: int) -> str:
        """The name of one of `instances`, or `WAIT`; there is one at least. They are in order of joining and all have the
        role; for an image whose embeddings some have already, they are those."""
        ...

    def order(self, request: RequestView, now_ns: int) -> tuple[float, ...]:
        """The place among those that wait: the smallest first, ties in order of arrival. Looked up when a request comes and
        when its turn has come, for all at every tick; only policies that are `late` are asked."""
        ...
