"""Paced instances: a small model plays a large one. Each iteration, image and transfer takes at least as long as stage times
predict for it; what is really computed in that time are the small model's tokens and KV.

Nothing spins and nothing is held up that the played device would not hold up: an iteration that is done early leaves the
instance's thread to messages, the encoder waits in its own, a transfer leaves when its time has come, and behind it only
what goes to the same peer.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tierline.core.instance_actions import RunStep
from tierline.core.instance_events import InstanceEvent, RoundArrived
from tierline.core.nouns import NS_PER_S
from tierline.core.stage_times import BatchShape, StageTimes
from tierline.engine.settings import InstanceSettings
from tierline.perf.device_sharing import Work
from tierline.perf.device_times import stage_times
from tierline.perf.scaled_times import ScaledTimes

if TYPE_CHECKING:
    from tierline.core.instance_actions import Tell
    from tierline.core.request import TokenLogprob
    from tierline.engine.instance import Payload, Port

LATE_NS = 3_000_000  # so much of a late wake-up is made good by the iteration that follows at once


def shape_of(step: RunStep) -> BatchShape:
    """What the iteration computes, as stage times ask for it."""
    chunks: list[tuple[int, int]] = []
    decodes = context = 0
    for chunk in step.chunks:
        if chunk.tokens == 1 and chunk.first:
            decodes += 1
            context += chunk.first
        else:
            chunks.append((chunk.tokens, chunk.first))
    return BatchShape(tuple(chunks), decodes, context)


def paced_times(settings: InstanceSettings) -> StageTimes | None:
    """Times of what the instance plays, None where it plays nothing. Raises `InvalidInput`."""
    if not settings.pace:
        return None
    return ScaledTimes(stage_times(settings.pace), settings.pace_positions, settings.pace_stretch)


class PacedDevice:
    """The device that is played: an iteration and an image at most are under way, and slow each other as `times` say.
    Iterations belong to one thread, images to another. `prepares`: what the CPU does to an image takes its time here as well.
    `clock`: nanoseconds."""

    def __init__(
        self,
        times: StageTimes,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        prepares: bool = False,
    ) -> None:
        self.times = times
        self._prepares = prepares
        self._clock = clock
        self._changed = threading.Condition()
        self._iteration: Work | None = None
        self._tokens = 0
        self._image: Work | None = None
        self._ended_ns = 0
        self._closed = False

    # --- iterations

    def begin(self, batch: BatchShape, follows: bool) -> None:
        """An iteration begins; `follows`: at once after the one before, so at the moment when that should have ended."""
        seconds = self.times.iteration_s(batch)
        now_ns = self._clock()
        began_ns = max(self._ended_ns, now_ns - LATE_NS) if follows else now_ns
        with self._changed:
            self._iteration = Work(seconds * NS_PER_S, min(began_ns, now_ns))
            self._tokens = batch.decodes + sum(new for new, _ in batch.chunks)
            self._beside(now_ns)

    def left_ns(self) -> int:
        """Until the iteration that is under way may end, 0 when it may."""
        with self._changed:
            assert self._iteration is not None, "an iteration is under way"
            return max(0, self._iteration.end_ns - self._clock())

    def end(self) -> None:
        """The iteration has ended."""
        with self._changed:
            assert self._iteration is not None, "an iteration is under way"
            self._ended_ns = self._iteration.end_ns
            self._iteration = None
            self._beside(self._ended_ns)

    # --- images

    def begin_image(self, tokens: int) -> None:
        """An image of so many positions begins to be encoded."""
        patches = self.times.patches_per_token * tokens
        seconds = self.times.encode_s((patches,)) + (self.times.prepare_s(patches) if self._prepares else 0.0)
        with self._changed:
            now_ns = self._clock()
            self._image = Work(seconds * NS_PER_S, now_ns)
            self._beside(now_ns)

    def end_image(self) -> None:
        """Wait until the image that is under way, if one is, may be done, or all is closed."""
        with self._changed:
            if self._image is None:
                return
            while not self._closed and (left_ns := self._image.end_ns - self._clock()) > 0:
                self._changed.wait(left_ns / NS_PER_S)
            ended_ns = self._image.end_ns
            self._image = None
            self._beside(ended_ns)

    def close(self) -> None:
        """Let an image go that is waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _beside(self, now_ns: int) -> None:
        """What is under way goes at the speed that it has beside the other, from `now_ns` on."""
        both = self._iteration is not None and self._image is not None
        slowdown = self.times.slowdown(self._tokens) if both else 1.0
        for work in (self._iteration, self._image):
            if work is not None:
                work.change(max(now_ns, work.since_ns), slowdown)
        self._changed.notify_all()


class PacedPort:
    """A port whose payloads leave when the transfer would be through: one at a time, as over one link. What follows to the
    same peer does not overtake them. `embedding_token_bytes`: of the small model, to count the positions of a payload.
    `clock`: nanoseconds."""

    def __init__(
        self,
        port: Port,
        times: StageTimes,
        embedding_token_bytes: int,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._port = port
        self._clock = clock
        self._times = times
        self._embedding_token_bytes = embedding_token_bytes
        self._free_ns = 0
        self._held: dict[str, deque[tuple[int, InstanceEvent, Payload]]] = {}

    def send(self, peer: str, event: InstanceEvent, payload: Payload) -> None:
        held = self._held.get(peer)
        if payload is None:
            if held:
                held.append((held[-1][0], event, None))
            else:
                self._port.send(peer, event, None)
            return
        if isinstance(event, RoundArrived):
            size_bytes = (event.until - event.first) * self._times.kv_token_bytes
        else:
            size_bytes = payload.numel() // self._embedding_token_bytes * self._times.embedding_token_bytes
        begun_ns = max(self._free_ns, self._clock())
        self._free_ns = begun_ns + round(self._times.transfer_s(size_bytes) * NS_PER_S)
        self._held.setdefault(peer, deque()).append((self._free_ns, event, payload))

    def tell(self, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._port.tell(message, logprobs)

    def left_ns(self) -> int | None:
        """Until something may leave; None = nothing is held."""
        if not self._held:
            return None
        return max(0, min(held[0][0] for held in self._held.values()) - self._clock())

    def flush(self) -> None:
        """Send what is through."""
        if not self._held:
            return
        now_ns = self._clock()
        for peer, held in list(self._held.items()):
            while held and held[0][0] <= now_ns:
                _, event, payload = held.popleft()
                self._port.send(peer, event, payload)
            if not held:
                del self._held[peer]
