"""One simulated instance: its scheduler, and when what that wants is done. Where messages go is the cluster's business.

Over 400 lines: iterations, leaps over them and the encoder beside them share the moments at which each of them ends.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Protocol

from tierline.backends.serving.sim_device import IterationTimer
from tierline.backends.serving.sim_messages import message_of, sender_of
from tierline.backends.serving.sim_prompts import END, TOKEN
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
    TellEmbeddings,
    TellMoved,
    TellPrefilled,
    TellProgress,
    TellStatus,
    TellTokens,
)
from tierline.core.instance_events import (
    EmbeddingsArrived,
    EncodeAsked,
    EncodeEnded,
    InstanceEvent,
    PeerLost,
    RoundArrived,
    StepEnded,
    WakeEnded,
)
from tierline.core.nouns import NS_PER_S
from tierline.core.served_trace import TracedImage
from tierline.core.stage_times import BatchShape, StageTimes
from tierline.perf.device_sharing import Work
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_images import EVICTED

STATUS_NS = 100_000_000  # as a live instance does
NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How an instance uses its device. `inline_images`: so many at a time where they are encoded inline. `progress_ns`:
    so often output in the middle of answers is told (first and last tokens at once)."""

    encoder: EncoderKind = "overlapped"
    inline_images: int = 1
    progress_ns: int = NS_PER_S


class Outside(Protocol):
    """What an instance needs of the world."""

    def wake(self, instance: SimInstance, at_ns: int, version: int) -> None:
        """Call `due(version)` at that time."""
        ...

    def tell(self, instance: SimInstance, now_ns: int, message: Tell) -> None:
        """To the serving scheduler."""
        ...

    def send(self, instance: SimInstance, now_ns: int, to: str, event: InstanceEvent, size_bytes: int) -> None:
        """To a peer. `size_bytes` of payload go over the link first."""
        ...

    def output_of(self, attempt: str) -> int:
        """How long the answer will truly be."""
        ...

    def image(self, content_hash: str) -> TracedImage: ...


class SimInstance:
    """`deliver` takes messages, `due` is called when something may have ended. All times only ever grow, but that a message
    in the midst of a leap has the iterations before it ended first, each at its own time."""

    def __init__(
        self,
        name: str,
        index: int,
        scheduler: InstanceScheduler,
        times: StageTimes,
        options: DeviceOptions,
        outside: Outside,
    ) -> None:
        self.name = name
        self.index = index
        self.alive = True
        self.iterations = 0
        self.busy_ns = 0
        self._scheduler = scheduler
        self._times = times
        self._options = options
        self._outside = outside
        self._timer = IterationTimer(times)
        self._version = 0  # of the last time that was asked for
        self._wake_ns = NEVER  # that time
        self._lost: set[str] = set()
        # iterations
        self._step: RunStep | None = None  # that is under way, or waits for the encoder
        self._count = 0  # iterations of it that are being run; 0 = it waits
        self._end_ns = 0  # when they end, if nothing slows them
        self._most = 1  # so many may be run before the scheduler is to be asked
        self._shape = BatchShape()
        self._tokens = 0
        self._begun_ns = 0
        self._disturbed: Work | None = None  # the iteration, while or after an encoder slowed it
        # the lockstep, as an engine knows it
        self._ran = 0
        self._ends: list[tuple[int, str]] = []
        self._end_of: dict[str, int] = {}
        self._known: dict[str, tuple[int, int]] = {}  # attempt -> (prompt tokens, true output)
        # images
        self._pixels: set[str] = set()
        self._image = ""  # that is being encoded, or waits for its turn
        self._encode: Work | None = None
        self._turn = 0  # images encoded since the last iteration
        # what is told
        self._status: TellStatus | None = None
        self._unsaid = True  # something has happened since
        self._status_ns = 0
        self._progress_ns = 0

    # --- events

    def deliver(self, now_ns: int, event: InstanceEvent, *, pixels: bool = False) -> None:
        """A message has come. `pixels`: with the image that it asks to encode."""
        if isinstance(event, PeerLost):
            self._lost.add(event.peer)
        elif self._lost and sender_of(event) in self._lost:
            return
        self._interrupt(now_ns)
        if isinstance(event, EncodeAsked) and pixels:
            self._pixels.add(event.content_hash)
        self._handle(now_ns, event)
        if isinstance(event, EncodeAsked) and not self._scheduler.will_encode(event.content_hash):
            self._pixels.discard(event.content_hash)
        self._go_on(now_ns)

    def due(self, now_ns: int, version: int) -> None:
        """The time has come that was asked for, unless another was asked for since."""
        if version != self._version or not self.alive:
            return
        self._wake_ns = NEVER
        if self._encode is not None and self._encode.end_ns <= now_ns:
            self._encoded(now_ns)
        if self._step is not None and self._count and self._step_end_ns() <= now_ns:
            self._stepped(now_ns, self._count)
        self._go_on(now_ns)

    def die(self, now_ns: int) -> None:
        """It is gone; what it had told before is under way."""
        self._interrupt(now_ns)
        self._tell_progress(now_ns)
        self.alive = False

    # --- the scheduler

    def _handle(self, now_ns: int, event: InstanceEvent) -> None:
        self._unsaid = True
        step = self._step
        for action in self._scheduler.handle(now_ns, event):
            self._execute(now_ns, action)
        if step is not None and self._step is step:
            self._most = self._unasked(self._scheduler.unasked()) if self._count else 1

    def _execute(self, now_ns: int, action: InstanceAction) -> None:
        match action:
            case RunStep():
                self._decided(action)
            case TellTokens() | TellEmbeddings() | TellPrefilled() | TellMoved():  # and the rarer ones below
                self._outside.tell(self, now_ns, action)
            case AddSequence(request):
                output = self._outside.output_of(request.request_id)
                self._known[request.request_id] = (len(request.prompt), output)
            case DropSequence(request_id):
                del self._known[request_id]
                self._end_of.pop(request_id, None)
            case EncodeImage(content_hash):
                self._image = content_hash
            case DropEmbeddings() | ImportRound() | FreeMemory():
                pass  # nothing is stored
            case SendEmbeddings(content_hash, to):
                size = self._embedding_bytes(content_hash)
                self._outside.send(self, now_ns, to, EmbeddingsArrived(content_hash, size), size)
            case SendRound():
                event = RoundArrived(
                    action.request_id, self.name, action.first, action.until, action.made, action.final
                )
                size = (action.until - action.first) * self._times.kv_token_bytes
                self._outside.send(self, now_ns, action.to, event, size)
            case (
                SendEncodeFailure()
                | OfferMove()
                | AcceptMove()
                | RefuseMove()
                | CancelMove()
                | ConfirmRound()
                | ConfirmMove()
            ):
                self._outside.send(self, now_ns, action.to, message_of(action, self.name), 0)
            case TakeMemory():
                self._handle(now_ns, WakeEnded())  # the time that it takes is over already
            case _:
                self._outside.tell(self, now_ns, action)

    # --- iterations

    def _go_on(self, now_ns: int) -> None:
        """Begin what can begin, and ask to be woken when something ends."""
        if self._encode is None and self._image:
            self._begin_encode(now_ns)
        step = self._step
        if step is not None:
            if self._count == 1 and self._most > 1:
                self._leap()
            elif not self._count and (self._options.encoder == "overlapped" or self._encode is None):
                self._begin_step(now_ns)
        if step is None:
            self._tell_status(now_ns)
        at_ns = self._encode.end_ns if self._encode is not None else NEVER
        if self._step is not None and self._count:
            at_ns = min(at_ns, self._step_end_ns())
        if at_ns == NEVER and self._unsaid:
            at_ns = max(now_ns, self._status_ns + STATUS_NS)
        if at_ns != self._wake_ns:
            self._version += 1
            self._wake_ns = at_ns
            if at_ns != NEVER:
                self._outside.wake(self, at_ns, self._version)

    def _decided(self, step: RunStep) -> None:
        """An iteration waits to be begun. One of its sequences may go before that; it is computed all the same."""
        self._step, self._count = step, 0
        for attempt in step.left:
            self._end_of.pop(attempt, None)
        for attempt, computed in step.joined:
            prompt, output = self._known[attempt]
            end = self._ran + max(1, output - (computed + 1 - prompt))
            self._end_of[attempt] = end
            heapq.heappush(self._ends, (end, attempt))
        prompts, decodes, context = [], step.decodes, step.decode_context
        for chunk in step.chunks:
            if chunk.tokens == 1 and chunk.samples and chunk.first >= self._known[chunk.request_id][0]:
                decodes += 1
                context += chunk.first
            else:
                prompts.append((chunk.tokens, chunk.first))
        self._shape = BatchShape(tuple(prompts), decodes, context)
        self._tokens = decodes
        for new, _ in prompts:
            self._tokens += new
        self._most = self._unasked(step.most)

    def _unasked(self, most: int) -> int:
        """Of `most` iterations those until the first answer ends, which the scheduler does not know of."""
        if most > 1:
            ends = self._ends
            while ends and self._end_of.get(ends[0][1]) != ends[0][0]:
                heapq.heappop(ends)
            if ends:
                return min(most, ends[0][0] - self._ran)
        return most

    def _begin_step(self, now_ns: int, *, leap: bool = True) -> None:
        """The iteration begins, and those after it as well if they may `leap`."""
        self._timer.start(now_ns, self._shape)
        self._begun_ns, self._turn, self._disturbed = now_ns, 0, None
        self._count = 1
        self._end_ns = self._timer.end_ns()
        if self._encode is not None:
            self._disturb(now_ns)
        elif leap and self._most > 1:
            self._leap()

    def _leap(self) -> None:
        """The iterations after the one under way are run with it, where nothing will disturb them, until one after which
        something is to be told."""
        if self._encode is not None or self._disturbed is not None or self._image:
            return
        told = min(self._status_ns + STATUS_NS, self._progress_ns + self._options.progress_ns)
        if self._end_ns < told:
            self._count = min(self._most, self._timer.until(told - 1, self._most) + 1)
            self._end_ns = self._timer.end_ns(self._count)

    def _step_end_ns(self) -> int:
        return self._end_ns if self._disturbed is None else self._disturbed.end_ns

    def _interrupt(self, now_ns: int) -> None:
        """Something will be said to the scheduler: iterations of a leap that are over have ended, and one is under way."""
        if self._count <= 1:
            return
        over = self._timer.until(now_ns, self._count - 1)
        if over:
            at_ns = self._timer.end_ns(over)
            self._stepped(at_ns, over)
            self._begin_step(at_ns, leap=False)
        else:
            self._count = 1
            self._end_ns = self._timer.end_ns()

    def _stepped(self, now_ns: int, count: int) -> None:
        step = self._step
        assert step is not None
        self._timer.ended(now_ns, count, on_time=self._disturbed is None)
        self._count, self._disturbed = 0, None
        if self._encode is not None:
            self._encode.change(now_ns, 1.0)
        self.iterations += count
        self.busy_ns += now_ns - self._begun_ns
        if step.decodes:
            self._ran += count
        if count < self._most:
            self._goes_on(now_ns, count)
        else:
            self._step = None
            self._handle(now_ns, StepEnded(step.step, self._sampled(step), count))
        self._tell_status(now_ns)

    def _goes_on(self, now_ns: int, count: int) -> None:
        """The next iteration, of which the scheduler need not be asked, waits to be begun."""
        self._most -= count
        self._unsaid = True
        self._scheduler.ran_unasked(now_ns, count)
        decodes, context = self._shape.decodes, self._shape.decode_context
        self._shape = BatchShape((), decodes, context + count * decodes)

    def _sampled(self, step: RunStep) -> tuple[tuple[str, int], ...]:
        """What has been drawn, but for tokens in the midst of answers in lockstep."""
        sampled = []
        for chunk in step.chunks:
            known = self._known.get(chunk.request_id)
            if chunk.samples and known is not None:
                number = chunk.first + chunk.tokens - known[0] + 1
                sampled.append((chunk.request_id, END if number >= known[1] else TOKEN))
        while step.decodes and self._ends and self._ends[0][0] <= self._ran:
            end, attempt = heapq.heappop(self._ends)
            if self._end_of.get(attempt) == end:
                del self._end_of[attempt]
                sampled.append((attempt, END))
        return tuple(sampled)

    # --- images

    def _begin_encode(self, now_ns: int) -> None:
        kind = self._options.encoder
        if self._image not in self._pixels:
            self._image, content_hash = "", self._image
            self._handle(now_ns, EncodeEnded(content_hash, 0, EVICTED))
            if self._image:
                self._begin_encode(now_ns)
            return
        if kind != "overlapped":
            if self._count:
                return  # an iteration is under way
            if kind == "inline" and self._step is not None and self._turn >= self._options.inline_images:
                return
            self._turn += 1
        patches = self._outside.image(self._image).encoder_patches(self._times.patches_per_token)
        seconds = self._times.encode_s((patches,))
        if kind == "blocking":
            seconds += self._times.prepare_s(patches)
        self._encode = Work(seconds * NS_PER_S, now_ns)
        if self._count:
            self._interrupt(now_ns)
            self._disturb(now_ns)

    def _disturb(self, now_ns: int) -> None:
        """Encoder and iteration are beside each other from now on."""
        assert self._encode is not None
        slowdown = self._times.slowdown(self._tokens)
        if self._disturbed is None:
            self._disturbed = Work(self._end_ns - now_ns, now_ns)
        self._disturbed.change(now_ns, slowdown)
        self._encode.change(now_ns, slowdown)

    def _encoded(self, now_ns: int) -> None:
        content_hash, self._image, self._encode = self._image, "", None
        if self._disturbed is not None:
            self._disturbed.change(now_ns, 1.0)
        self._pixels.discard(content_hash)
        self._handle(now_ns, EncodeEnded(content_hash, self._embedding_bytes(content_hash)))

    def _embedding_bytes(self, content_hash: str) -> int:
        return self._outside.image(content_hash).tokens * self._times.embedding_token_bytes

    # --- what is told now and then

    def _tell_status(self, now_ns: int) -> None:
        if not self._unsaid:
            return
        if now_ns - self._progress_ns >= self._options.progress_ns:
            self._tell_progress(now_ns)
        if now_ns - self._status_ns >= STATUS_NS:
            status = self._scheduler.status()
            if status != self._status:
                self._outside.tell(self, now_ns, status)
                self._status = status
            self._status_ns = now_ns
            self._unsaid = False

    def _tell_progress(self, now_ns: int) -> None:
        self._progress_ns = now_ns
        if words := self._scheduler.progress():
            self._outside.tell(self, now_ns, TellProgress(words))

    def status(self) -> TellStatus:
        """Its counters as they are."""
        return self._scheduler.status()
