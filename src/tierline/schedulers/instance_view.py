"""What a batching policy sees of an instance, made when it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from tierline.core.batch_view import BatchView, Decodes, SequenceView
from tierline.schedulers import sequence as sequences
from tierline.schedulers.instance_state import InstanceState
from tierline.schedulers.lockstep import Lockstep

VIEWED_WAITING = 32  # of the queue, a policy sees so many that could begin,
VIEWED_BARRED = 96  # and so many between them whose first image is not encoded: these hold up nobody


class LazyViews(Sequence[SequenceView]):
    """A tuple of what `source` gives, taken from it as far as it is looked at. `count`: its length, where that is known; else
    there is one at least."""

    __slots__ = ("_count", "_made", "_source")

    def __init__(self, source: Iterator[SequenceView], count: int | None = None) -> None:
        self._source = source
        self._made: list[SequenceView] = []
        self._count = count

    def __iter__(self) -> Iterator[SequenceView]:
        number = 0
        while True:
            while number < len(self._made):
                yield self._made[number]
                number += 1
            more = next(self._source, None)
            if more is None:
                return
            self._made.append(more)

    def __len__(self) -> int:
        return len(self._all()) if self._count is None else self._count

    def __bool__(self) -> bool:
        return self._count != 0

    @overload
    def __getitem__(self, index: int) -> SequenceView: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SequenceView]: ...

    def __getitem__(self, index: int | slice) -> SequenceView | Sequence[SequenceView]:
        return self._all()[index]

    def _all(self) -> list[SequenceView]:
        self._made.extend(self._source)
        return self._made


def batch_view(
    state: InstanceState,
    lockstep: Lockstep | None,
    encoding: int,
    iterations: tuple[int, int],
    ask_for_images: Callable[[sequences.Sequence], None],
) -> BatchView:
    """The instance as it is now. `iterations`: so many have ended, and took so many nanoseconds."""
    begun: list[SequenceView] = []
    count, context = (len(lockstep.members), lockstep.context) if lockstep else (0, 0)
    for each in state.one_by_one():
        if each.is_decoding:
            count += 1
            context += each.computed
        else:
            begun.append(each.view(state.pool, each.computed, 0))
    return BatchView(
        now_ns=state.now_ns,
        running=LazyViews(_running(state, lockstep), len(state.running)),
        waiting=LazyViews(_waiting(state, ask_for_images)) if state.may_prefill and state.queue else (),
        free_blocks=state.kv.free,
        token_budget=state.limits.token_budget,
        sequence_limit=state.limits.sequence_limit,
        encoding=encoding,
        iterations=iterations[0],
        busy_ns=iterations[1],
        known_begun=begun,
        known_decodes=Decodes(count, context),
    )


def _running(state: InstanceState, lockstep: Lockstep | None) -> Iterator[SequenceView]:
    if lockstep:
        lockstep.settle_all()
    for each in state.running.values():
        yield each.view(state.pool, each.computed, 0)


def _waiting(state: InstanceState, ask_for_images: Callable[[sequences.Sequence], None]) -> Iterator[SequenceView]:
    block, barred, seen = state.limits.block_tokens, 0, 0
    for each in state.queue:
        if barred == VIEWED_BARRED or seen == VIEWED_WAITING:
            return
        found, needed = prefix_now(state, each, ask_for_images), state.kv.needed(len(each.tokens))
        view = each.view(state.pool, len(found) * block, needed - state.kv.held(found) if found else needed)
        if view.ready_tokens:
            seen += 1
        else:
            barred += 1
        yield view


def prefix_now(
    state: InstanceState, sequence: sequences.Sequence, ask_for_images: Callable[[sequences.Sequence], None]
) -> list[int]:
    """The blocks that a waiting sequence would find. Of those that it counted on some may have been given up since, so that
    it needs images that it has not asked for."""
    if sequence.request.images and sequence.asked_at != state.kv.forgotten:
        sequence.asked_at = state.kv.forgotten
        ask_for_images(sequence)
    return state.prefix(sequence)
