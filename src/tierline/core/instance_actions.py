"""What an instance's scheduler wants done. `Run…`, `Encode…`, `Drop…` are for its engine, those with a `to` for a peer,
`Tell…` for the serving scheduler."""

from __future__ import annotations

from msgspec import Struct

from tierline.core.request import FinishReason, Request, Role


class Chunk(Struct, frozen=True):
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


class RunStep(Struct, frozen=True):
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


class AddSequence(Struct, frozen=True):
    """From now on chunks may name this attempt."""

    request: Request


class DropSequence(Struct, frozen=True):
    """The attempt is no longer here."""

    request_id: str


class EncodeImage(Struct, frozen=True):
    """Encode this image, then answer with `EncodeEnded`. One at a time."""

    content_hash: str


class SendEmbeddings(Struct, frozen=True):
    """Copy an image's embeddings from the pool to a peer."""

    content_hash: str
    to: str


class SendEncodeFailure(Struct, frozen=True):
    """Tell a peer that an image could not be encoded."""

    content_hash: str
    to: str
    error: str


class DropEmbeddings(Struct, frozen=True):
    """The pool gives up the embeddings of these images (none is in use)."""

    hashes: tuple[str, ...]


class FreeMemory(Struct, frozen=True):
    """Give the KV arena up; weights go to host memory, or stay where they are there already."""


class TakeMemory(Struct, frozen=True):
    """Have a KV arena and the weights on the device again, run a batch of no request, then answer with `WakeEnded`."""


class OfferMove(Struct, frozen=True):
    request: Request
    to: str
    tokens: int


class AcceptMove(Struct, frozen=True):
    """Room for the attempt is reserved; the KV of its first `cached_tokens` is here already."""

    request_id: str
    to: str
    cached_tokens: int


class RefuseMove(Struct, frozen=True):
    request_id: str
    to: str
    reason: str


class SendRound(Struct, frozen=True):
    """Copy the KV of positions `first..until`, which lies in `blocks`, to the peer. `first` is a multiple of the block."""

    request_id: str
    to: str
    first: int
    until: int
    blocks: tuple[int, ...]
    made: tuple[int, ...]
    final: bool


class CancelMove(Struct, frozen=True):
    """The attempt will not come: the peer frees what it reserved."""

    request_id: str
    to: str


class ImportRound(Struct, frozen=True):
    """Put the KV that has just arrived for positions `first..until` into `blocks`."""

    request_id: str
    first: int
    until: int
    blocks: tuple[int, ...]


class ConfirmRound(Struct, frozen=True):
    request_id: str
    to: str
    until: int


class ConfirmMove(Struct, frozen=True):
    """Tell the peer that the attempt is ours."""

    request_id: str
    to: str


class TellTokens(Struct, frozen=True):
    """Output tokens `first..first+len(tokens)` of the attempt were made; `finish` ends it."""

    request_id: str
    first: int
    tokens: tuple[int, ...]
    finish: FinishReason | None = None
    cached_tokens: int = 0
    reason: str = ""


class TellProgress(Struct, frozen=True):
    """What a simulated engine has made in the midst of several answers: the same as telling each."""

    words: tuple[TellTokens, ...]


class TellPrefilled(Struct, frozen=True):
    """The attempt's prompt is done, and decoding is not allowed here: it waits to be moved."""

    request_id: str


class TellImagesNeeded(Struct, frozen=True):
    """The attempt cannot go on without the embeddings of these images."""

    request_id: str
    hashes: tuple[str, ...]


class TellReturned(Struct, frozen=True):
    """The attempt is given back: it cannot be prefilled here. `made` are all its output tokens."""

    request_id: str
    made: tuple[int, ...]
    reason: str


class TellMoved(Struct, frozen=True):
    """The attempt has come here and goes on."""

    request_id: str
    source: str


class TellMoveFailed(Struct, frozen=True):
    """The attempt could not be moved to `to`; it is still here."""

    request_id: str
    to: str
    reason: str


class TellEmbeddings(Struct, frozen=True):
    """Images whose embeddings are in the pool from now on, and those that are no longer."""

    stored: tuple[str, ...]
    dropped: tuple[str, ...]


class TellRoles(Struct, frozen=True):
    """These roles are in force: confirmed by the first batch of each new one, or at once where nothing waits."""

    roles: Role
    by_batch: bool


class TellAsleep(Struct, frozen=True):
    """The instance has given its memory up, with all that was cached there."""


class TellAwake(Struct, frozen=True):
    """The instance has its memory, and a batch has run: it takes requests, with these roles."""

    roles: Role


class TellStatus(Struct, frozen=True):
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


class TellTimes(Struct, frozen=True):
    """How long things take at the instance, as factors of its profile's `StageRates`, or of those without a profile
    (`perf/fitted_rates.py`); 0 = not known there."""

    factors: tuple[float, ...]


Tell = (
    TellTokens
    | TellProgress
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
