"""What an instance's scheduler wants done. `Run…`, `Encode…`, `Drop…` are for its engine, those with a `to` for a peer,
`Tell…` for the serving scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.request import FinishReason, Request, Role


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute positions `first..first+tokens` of a sequence in this iteration.

    `new_blocks` are appended to the sequence's block table first; with `fresh` the table is begun anew. `samples`: the
    chunk reaches the sequence's end, so a token is drawn.
    """

    request_id: str
    first: int
    tokens: int
    new_blocks: tuple[int, ...]
    fresh: bool
    samples: bool


@dataclass(frozen=True, slots=True)
class RunStep:
    """Run one iteration over these chunks, then answer with `StepEnded(step)`.

    The rest is for a simulated engine, whose sequences decode in lockstep (`schedulers/lockstep.py`): `decodes` of them in
    this iteration, with `decode_context` positions before theirs in sum. Who is among them is told by changes: `joined` as
    (attempt, its positions with KV), `left`. Up to `most` iterations may be run before the answer, if nothing is said to
    the instance before the last of them begins.
    """

    step: int
    chunks: tuple[Chunk, ...]
    decodes: int = 0
    decode_context: int = 0
    joined: tuple[tuple[str, int], ...] = ()
    left: tuple[str, ...] = ()
    most: int = 1


@dataclass(frozen=True, slots=True)
class AddSequence:
    """From now on chunks may name this attempt."""

    request: Request


@dataclass(frozen=True, slots=True)
class DropSequence:
    """The attempt is no longer here."""

    request_id: str


@dataclass(frozen=True, slots=True)
class EncodeImage:
    """Encode this image, then answer with `EncodeEnded`. One at a time."""

    content_hash: str


@dataclass(frozen=True, slots=True)
class SendEmbeddings:
    """Copy an image's embeddings from the pool to a peer."""

    content_hash: str
    to: str


@dataclass(frozen=True, slots=True)
class SendEncodeFailure:
    """Tell a peer that an image could not be encoded."""

    content_hash: str
    to: str
    error: str


@dataclass(frozen=True, slots=True)
class DropEmbeddings:
    """The pool gives up the embeddings of these images (none is in use)."""

    hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Give the KV arena up; weights go to host memory, or stay where they are there already."""


@dataclass(frozen=True, slots=True)
class TakeMemory:
    """Have a KV arena and the weights on the device again, run a batch of no request, then answer with `WakeEnded`."""


@dataclass(frozen=True, slots=True)
class OfferMove:
    request: Request
    to: str
    tokens: int


@dataclass(frozen=True, slots=True)
class AcceptMove:
    """Room for the attempt is reserved; the KV of its first `cached_tokens` is here already."""

    request_id: str
    to: str
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class RefuseMove:
    request_id: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True)
class SendRound:
    """Copy the KV of positions `first..until`, which lies in `blocks`, to the peer. `first` is a multiple of the block."""

    request_id: str
    to: str
    first: int
    until: int
    blocks: tuple[int, ...]
    made: tuple[int, ...]
    final: bool


@dataclass(frozen=True, slots=True)
class CancelMove:
    """The attempt will not come: the peer frees what it reserved."""

    request_id: str
    to: str


@dataclass(frozen=True, slots=True)
class ImportRound:
    """Put the KV that has just arrived for positions `first..until` into `blocks`."""

    request_id: str
    first: int
    until: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConfirmRound:
    request_id: str
    to: str
    until: int


@dataclass(frozen=True, slots=True)
class ConfirmMove:
    """Tell the peer that the attempt is ours."""

    request_id: str
    to: str


@dataclass(frozen=True, slots=True)
class TellTokens:
    """Output tokens `first..first+len(tokens)` of the attempt were made; `finish` ends it."""

    request_id: str
    first: int
    tokens: tuple[int, ...]
    finish: FinishReason | None = None
    cached_tokens: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TellPrefilled:
    """The attempt's prompt is done, and decoding is not allowed here: it waits to be moved."""

    request_id: str


@dataclass(frozen=True, slots=True)
class TellImagesNeeded:
    """The attempt cannot go on without the embeddings of these images."""

    request_id: str
    hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TellReturned:
    """The attempt is given back: it cannot be prefilled here. `made` are all its output tokens."""

    request_id: str
    made: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class TellMoved:
    """The attempt has come here and goes on."""

    request_id: str
    source: str


@dataclass(frozen=True, slots=True)
class TellMoveFailed:
    """The attempt could not be moved to `to`; it is still here."""

    request_id: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellEmbeddings:
    """Images whose embeddings are in the pool from now on, and those that are no longer."""

    stored: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TellRoles:
    """These roles are in force: confirmed by the first batch of each new one, or at once where nothing waits."""

    roles: Role
    by_batch: bool


@dataclass(frozen=True, slots=True)
class TellAsleep:
    """The instance has given its memory up, with all that was cached there."""


@dataclass(frozen=True, slots=True)
class TellAwake:
    """The instance has its memory, and a batch has run: it takes requests, with these roles."""

    roles: Role


@dataclass(frozen=True, slots=True)
class TellStatus:
    """Load and counters of the instance, for routing and people. One that sleeps has no blocks."""

    running: int
    waiting: int
    held: int
    encoding: int
    free_blocks: int
    total_blocks: int
    prefix_queries: int
    prefix_hits: int
    encoded_images: int
    pool_bytes: int
    preemptions: int
    steps: int


@dataclass(frozen=True, slots=True)
class TellTimes:
    """How long things take at the instance, as factors of what `StageRates` say without a profile (`perf/fitted_rates.py`);
    0 = not known there."""

    factors: tuple[float, ...]


Tell = (
    TellTokens
    | TellPrefilled
    | TellImagesNeeded
    | TellReturned
    | TellMoved
    | TellMoveFailed
    | TellEmbeddings
    | TellRoles
    | TellAsleep
    | TellAwake
    | TellStatus
    | TellTimes
)
ToEngine = RunStep | AddSequence | DropSequence | EncodeImage | DropEmbeddings | ImportRound | FreeMemory | TakeMemory
ToPeer = (
    SendEmbeddings
    | SendEncodeFailure
    | OfferMove
    | AcceptMove
    | RefuseMove
    | SendRound
    | CancelMove
    | ConfirmRound
    | ConfirmMove
)
InstanceAction = ToEngine | ToPeer | Tell
