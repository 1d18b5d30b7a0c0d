"""The encoder's side of an instance: one image at a time, first come first served, beside the iterations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from tierline.core.instance_actions import EncodeImage, SendEmbeddings, SendEncodeFailure, TellImagesNeeded
from tierline.core.instance_events import EncodeAsked, EncodeEnded
from tierline.schedulers.instance_state import InstanceState

EVICTED = "its embeddings were given up and its pixels are not here"
HEARD_NS = 10_000_000_000  # so long it is remembered that word of an image came


class Encoder:
    """`lost(content_hash, error)`: told when an image that sequences here wait for cannot be encoded."""

    def __init__(self, state: InstanceState, name: str, lost: Callable[[str, str], None]) -> None:
        self._state = state
        self._name = name
        self._lost = lost
        self._queue: OrderedDict[str, list[str]] = OrderedDict()  # image -> whom to deliver to ("" = here)
        self._busy = ""
        self._heard: OrderedDict[str, int] = (
            OrderedDict()
        )  # image that came or failed lately -> when, also unwaited for
        self.encoded = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def has(self, content_hash: str) -> bool:
        return content_hash in self._queue

    def expects(self, content_hash: str) -> bool:
        """Whether the image is being encoded for this instance."""
        return "" in self._queue.get(content_hash, ())

    def has_heard(self, content_hash: str) -> bool:
        """Whether word of the image came lately: a request that expects it may be too late for it (word from an encoder
        can overtake the request), so it is asked for again."""
        return self._state.now_ns - self._heard.get(content_hash, -HEARD_NS - 1) <= HEARD_NS

    def ask(self, event: EncodeAsked) -> None:
        to = "" if event.to == self._name else event.to
        if event.content_hash in self._queue:
            receivers = self._queue[event.content_hash]
            if to not in receivers:
                receivers.append(to)
        elif event.content_hash in self._state.pool:
            self._deliver(event.content_hash, [to])
        else:
            self._queue[event.content_hash] = [to]
            self._next()

    def refuse(self, event: EncodeAsked) -> None:
        """Nothing can be encoded here now, and the pool is empty."""
        self._fail(event.content_hash, [event.to if event.to != self._name else ""], EVICTED)

    def ended(self, event: EncodeEnded) -> None:
        assert self._busy == event.content_hash
        self._busy = ""
        receivers = self._queue.pop(event.content_hash)
        if event.error:
            self._fail(event.content_hash, receivers, event.error)
        else:
            self.encoded += 1
            self._deliver(event.content_hash, receivers)  # before a full pool gives it up
            self.arrived(event.content_hash, event.size_bytes)
        self._next()

    def arrived(self, content_hash: str, size_bytes: int) -> None:
        """Embeddings are here."""
        self._hear(content_hash)
        self._state.image_ready(content_hash, size_bytes)

    def failed(self, content_hash: str, error: str) -> None:
        """An image that sequences here wait for will not come. Gone from a pool meanwhile: ask for it again."""
        self._hear(content_hash)
        if error != EVICTED:
            self._lost(content_hash, error)
            return
        for sequence in self._state.wanted.get(content_hash, {}).values():
            self._state.out.append(TellImagesNeeded(sequence.request_id, (content_hash,)))

    def forget_peer(self, peer: str) -> None:
        for receivers in self._queue.values():
            if peer in receivers:
                receivers.remove(peer)

    def _hear(self, content_hash: str) -> None:
        self._heard[content_hash] = self._state.now_ns
        self._heard.move_to_end(content_hash)
        while not self.has_heard(next(iter(self._heard))):
            self._heard.popitem(last=False)

    def _deliver(self, content_hash: str, receivers: list[str]) -> None:
        self._state.out += [SendEmbeddings(content_hash, to) for to in receivers if to]

    def _fail(self, content_hash: str, receivers: list[str], error: str) -> None:
        for to in receivers:
            if to:
                self._state.out.append(SendEncodeFailure(content_hash, to, error))
            else:
                self.failed(content_hash, error)

    def _next(self) -> None:
        if not self._busy and self._queue:
            self._busy = next(iter(self._queue))
            self._state.out.append(EncodeImage(self._busy))
