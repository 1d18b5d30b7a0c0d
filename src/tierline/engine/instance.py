"""One instance: its scheduler, its model, its encoder lane. Where messages come from and go to is the port's business, so
the same instance runs in a process of its own, or beside others in a test."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from msgspec.structs import replace

from tierline.core.encoder_kind import EncoderKind
from tierline.core.instance_actions import (
    AcceptMove,
    AddSequence,
    CancelMove,
    ConfirmMove,
    ConfirmRound,
    DropEmbeddings,
    DropSequence,
    EncodeImage,
    FreeMemory,
    ImportRound,
    InstanceAction,
    OfferMove,
    RefuseMove,
    RunStep,
    SendEmbeddings,
    SendEncodeFailure,
    SendRound,
    TakeMemory,
    Tell,
    TellTimes,
    TellTokens,
    ToPeer,
)
from tierline.core.instance_events import (
    EmbeddingsArrived,
    EncodeAsked,
    EncodeEnded,
    EncodeFailed,
    InstanceEvent,
    MoveAccepted,
    MoveCancelled,
    MoveOffered,
    MoveRefused,
    MoveTaken,
    RoundArrived,
    RoundTaken,
    StepEnded,
    WakeEnded,
)
from tierline.core.nouns import NS_PER_S
from tierline.core.request import Picture, TokenLogprob
from tierline.engine.arena import KvArena
from tierline.engine.encoder import EncoderLane
from tierline.engine.pace import PacedDevice, PacedPort, shape_of
from tierline.engine.runner import ModelRunner, Sampled
from tierline.perf.fitted_rates import FittedRates
from tierline.perf.stage_time_online import OnlineTimes
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_images import EVICTED

Payload = torch.Tensor | None
INLINE_IMAGES = 1  # between two iterations, where images are encoded inline


class Port(Protocol):
    """The way to everybody else."""

    def send(self, peer: str, event: InstanceEvent, payload: Payload) -> None:
        """To another instance. `payload`: uint8, flat, on the host."""
        ...

    def tell(self, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        """To the serving scheduler."""
        ...


class Instance:
    """`deliver` takes what happened elsewhere, `step` runs the iteration that is due. Not for several threads. `pace`: of the
    device that is played; an iteration that is done before its time is held until then. `observed`: times that learn how long
    iterations take here; `rates`: the same for the serving scheduler, which is told. `encoder`: unless images are encoded
    beside iterations, neither begins while the other is under way."""

    def __init__(
        self,
        name: str,
        scheduler: InstanceScheduler,
        runner: ModelRunner,
        arena: KvArena,
        lane: EncoderLane,
        embeddings: dict[str, torch.Tensor],
        port: Port,
        pace: PacedDevice | None = None,
        observed: OnlineTimes | None = None,
        encoder: EncoderKind = "overlapped",
        rates: FittedRates | None = None,
    ) -> None:
        self.name = name
        self._scheduler = scheduler
        self._runner = runner
        self._arena = arena
        self._lane = lane
        self._embeddings = embeddings
        self._port = port
        self._pictures: dict[str, Picture] = {}
        self._arriving: torch.Tensor | None = None  # KV of the round that is being delivered
        self._due: RunStep | None = None
        self._logprobs: Mapping[str, TokenLogprob] = {}
        self._pace = pace
        self._observed = [each for each in (observed, rates) if each is not None and pace is None]
        self._rates = rates
        self._since_ns = 0  # what iterations take is counted from here: where one follows another, from the end of that
        self._ended_ns = 0
        self._held: tuple[RunStep, Sequence[Sampled]] | None = None  # computed, and its time is not over yet
        self._follows = False  # the iteration that is due came at once after the one before
        self._encoder = encoder
        self._waiting: Picture | None = None  # its turn comes between two iterations
        self._encoding = ""  # the image that the lane has, where no iteration may begin meanwhile
        self._turn = 0  # images encoded since the last iteration

    @property
    def has_step(self) -> bool:
        """An iteration is due and may begin."""
        return self._due is not None and not self._encoding

    @property
    def due(self) -> RunStep | None:
        """The iteration that `step` will run."""
        return self._due

    def wait_ns(self) -> int | None:
        """Until something that is held back for its pace may go on; None = nothing is."""
        waits: list[int] = []
        if self._held is not None and self._pace is not None:
            waits.append(self._pace.left_ns())
        if isinstance(self._port, PacedPort) and (left_ns := self._port.left_ns()) is not None:
            waits.append(left_ns)
        return min(waits, default=None)

    def deliver(self, event: InstanceEvent, payload: Payload = None, picture: Picture | None = None) -> None:
        """Something happened: `payload` are a round's KV or an image's embeddings, `picture` an image to encode."""
        if isinstance(event, EncodeAsked) and picture is not None:
            self._pictures[event.content_hash] = picture
        elif isinstance(event, EmbeddingsArrived):
            assert payload is not None
            if event.content_hash not in self._embeddings:
                self._embeddings[event.content_hash] = self._to_embeddings(payload)
        elif isinstance(event, RoundArrived):
            self._arriving = payload
            self._runner.made(event.request_id, event.made)
        self._handle(event)
        self._arriving = None
        if isinstance(event, EncodeAsked) and not self._scheduler.will_encode(event.content_hash):
            self._pictures.pop(event.content_hash, None)

    def collect(self) -> None:
        """Take what the encoder lane has finished, and send what was held back for its pace."""
        if isinstance(self._port, PacedPort):
            self._port.flush()
        for done in self._lane.take():
            self._pictures.pop(done.content_hash, None)
            if done.content_hash == self._encoding:
                self._encoding = ""
            if done.embeddings is None:
                self._handle(EncodeEnded(done.content_hash, 0, done.error))
            else:
                self._embeddings[done.content_hash] = done.embeddings
                if self._rates is not None:
                    self._rates.observe_image(len(done.embeddings), done.seconds)
                self._handle(EncodeEnded(done.content_hash, done.embeddings.nbytes))

    def step(self) -> None:
        """Run the iteration that is due, if one is; end it when its time is over."""
        if self._held is None and self._due is not None and not self._encoding:
            step, self._due = self._due, None
            self._turn = 0
            self._since_ns = self._ended_ns if self._follows else time.perf_counter_ns()
            if self._pace is not None:
                self._pace.begin(shape_of(step), self._follows)
            self._held = step, self._runner.run(step) if step.chunks else ()
        if self._held is None or (self._pace is not None and self._pace.left_ns()):
            return
        step, sampled = self._held
        self._held = None
        if self._pace is not None:
            self._pace.end()
        self._logprobs = {each.request_id: each.logprob for each in sampled if each.logprob is not None}
        self._handle(StepEnded(step.step, tuple((each.request_id, each.token) for each in sampled)))
        self._logprobs = {}
        self._follows = self._due is not None and not self._encoding
        self._ended_ns = time.perf_counter_ns()
        if step.chunks:
            for times in self._observed:
                times.observe(shape_of(step), (self._ended_ns - self._since_ns) / NS_PER_S)

    def _encode_next(self) -> None:
        """Have the image that waits encoded now, where no iteration is under way and it is its turn."""
        if self._waiting is None or self._held is not None:
            return
        if self._encoder == "inline" and self._due is not None and self._turn >= INLINE_IMAGES:
            return
        picture, self._waiting = self._waiting, None
        self._encoding, self._follows = picture.content_hash, False
        self._turn += 1
        self._lane.submit(picture)

    def tell_times(self) -> None:
        """Tell how long things take here, where there is news of that."""
        if self._rates is not None and (factors := self._rates.news()):
            self._port.tell(TellTimes(factors), ())

    def warm_up(self) -> None:
        """Before it takes requests for the first time."""
        self._runner.warm_up()

    def close(self) -> None:
        if self._pace is not None:
            self._pace.close()
        self._lane.close()

    def _handle(self, event: InstanceEvent) -> None:
        for action in self._scheduler.handle(time.monotonic_ns(), event):
            self._execute(action)
        self._encode_next()

    def _execute(self, action: InstanceAction) -> None:
        match action:
            case RunStep():
                self._due = action
            case AddSequence():
                self._runner.add(action.request)
            case DropSequence():
                self._runner.drop(action.request_id)
                if self._due is not None:  # decided, not run yet: the others in it stay
                    left = tuple(chunk for chunk in self._due.chunks if chunk.request_id != action.request_id)
                    self._due = replace(self._due, chunks=left)
            case EncodeImage():
                picture = self._pictures.get(action.content_hash)
                if picture is None:
                    self._lane.fail(action.content_hash, EVICTED)
                elif self._encoder == "overlapped":
                    self._lane.submit(picture)
                else:
                    self._waiting = picture
            case DropEmbeddings():
                for content_hash in action.hashes:
                    self._embeddings.pop(content_hash, None)
            case ImportRound():
                assert self._arriving is not None
                self._arena.load(action.blocks, self._arriving)
            case FreeMemory():
                self._runner.free_memory()
            case TakeMemory():
                self._runner.take_memory()
                self._handle(WakeEnded())
            case (
                SendEmbeddings()
                | SendEncodeFailure()
                | OfferMove()
                | AcceptMove()
                | RefuseMove()
                | SendRound()
                | CancelMove()
                | ConfirmRound()
                | ConfirmMove()
            ):
                self._to_peer(action)
            case _:
                logprobs: tuple[TokenLogprob, ...] = ()
                if isinstance(action, TellTokens) and action.tokens and action.request_id in self._logprobs:
                    logprobs = (self._logprobs[action.request_id],)
                self._port.tell(action, logprobs)

    def _to_peer(self, action: ToPeer) -> None:
        payload: Payload = None
        event: InstanceEvent
        match action:
            case SendEmbeddings():
                payload = self._embeddings[action.content_hash].cpu().view(torch.uint8).reshape(-1)
                event = EmbeddingsArrived(action.content_hash, payload.numel())
            case SendEncodeFailure():
                event = EncodeFailed(action.content_hash, action.error)
            case OfferMove():
                event = MoveOffered(action.request, self.name, action.tokens)
            case AcceptMove():
                event = MoveAccepted(action.request_id, self.name, action.cached_tokens)
            case RefuseMove():
                event = MoveRefused(action.request_id, self.name, action.reason)
            case SendRound():
                payload = self._arena.export(action.blocks)
                event = RoundArrived(
                    action.request_id, self.name, action.first, action.until, action.made, action.final
                )
            case CancelMove():
                event = MoveCancelled(action.request_id, self.name)
            case ConfirmRound():
                event = RoundTaken(action.request_id, self.name, action.until)
            case ConfirmMove():
                event = MoveTaken(action.request_id, self.name)
        self._port.send(action.to, event, payload)

    def _to_embeddings(self, payload: torch.Tensor) -> torch.Tensor:
        weight = self._runner.embedding_weight
        # A copy of our own: the payload may be a mapped file, and a pool of those would use up the descriptors.
        return payload.view(weight.dtype).view(-1, weight.shape[-1]).to(weight.device, copy=True)
