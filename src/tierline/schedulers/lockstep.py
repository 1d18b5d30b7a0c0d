"""Sequences that do nothing but decode, advanced together at a cost that does not grow with their number.

For engines whose tokens mean nothing, that is simulators: everybody in lockstep draws the same known token in every
iteration, but for those whose end the engine names. So what each of them has made follows from the number of iterations; its
fields are brought up to date (`settle`) when somebody looks. Results are those of going through them one by one.
"""

from __future__ import annotations

import heapq

from tierline.schedulers.instance_state import InstanceState, seat_of
from tierline.schedulers.sequence import Sequence


class Lockstep:
    """`token`: what everybody draws. `iterations` so many have ended; before the next one the members have `context`
    positions with KV in sum.

    A member is in the list `_growing[n]` of the iteration n before which it needs another block, and in the heap `_full` by
    the iteration with which its answer is as long as it may be; entries of those that have left are passed over.
    """

    def __init__(self, state: InstanceState, token: int) -> None:
        self._state = state
        self.token = token
        self.members: dict[str, Sequence] = {}
        self.iterations = 0
        self.context = 0
        self.joined: dict[str, int] = {}  # since `news`: attempt -> positions with KV
        self.left: dict[str, None] = {}
        self._growing: dict[int, list[Sequence]] = {}
        self._full: list[tuple[int, int, str]] = []

    def join(self, sequence: Sequence) -> None:
        """It is decoding, in no iteration, and not on its way to a peer."""
        name, limits = sequence.request_id, self._state.limits
        self.members[name] = sequence
        del self._state.apart[name]
        sequence.locked = self.iterations
        self.context += sequence.computed
        self._plan_growth(sequence)
        room = limits.longest - len(sequence.tokens)
        sequence.full_at = self.iterations + min(sequence.request.sampling.max_tokens - sequence.output_tokens, room)
        heapq.heappush(self._full, (sequence.full_at, sequence.seat, name))
        self.joined[name] = sequence.computed

    def leave(self, sequence: Sequence) -> None:
        """It is a sequence by itself again, up to date."""
        name = sequence.request_id
        self.settle(sequence)
        self._state.register(sequence)
        del self.members[name]
        self._state.apart[name] = sequence
        self.context -= sequence.computed
        sequence.locked = sequence.full_at = -1
        if self.joined.pop(name, None) is None:
            self.left[name] = None

    def settle(self, sequence: Sequence) -> None:
        """Bring a member's fields up to date."""
        more = self.iterations - sequence.locked
        if more:
            sequence.computed += more
            sequence.tokens += [self.token] * more
            sequence.locked = self.iterations

    def settle_all(self) -> None:
        for sequence in self.members.values():
            self.settle(sequence)

    def news(self) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        """Who has joined, with its positions that have KV, and who has left, since this was last asked."""
        if not self.joined and not self.left:
            return (), ()
        joined, left = tuple(self.joined.items()), tuple(self.left)
        self.joined.clear()
        self.left.clear()
        return joined, left

    # --- iterations

    def may_run(self, others: int) -> bool:
        """Whether there are blocks for another iteration of all, and of `others` decodes beside them."""
        growing = self._growing.get(self.iterations)
        more = others if growing is None else others + len(growing)
        return not more or more <= self._state.kv.free

    def begin(self) -> None:
        """Give out the blocks that the next iteration needs."""
        growing = self._growing.pop(self.iterations, None)
        if growing is None:
            return
        if len(growing) > 1:
            growing.sort(key=seat_of)
        for sequence in growing:
            if sequence.locked < 0 or sequence.grow_at != self.iterations:
                continue
            sequence.blocks += self._state.kv.take(1)
            sequence.grow_at += self._state.limits.block_tokens
            self._growing.setdefault(sequence.grow_at, []).append(sequence)

    def most(self, free_blocks: int) -> int:
        """So many iterations, the next one included, can be run before one of them needs a decision: each has blocks, of
        `free_blocks`, and nobody's answer is full before the last. `begin` has given the blocks of the first."""
        full = self._full
        while full and self._next_full() is None:
            heapq.heappop(full)
        until = full[0][0] - self.iterations if full else 1
        rounds = free_blocks // (len(self.members) or 1)
        return max(1, min(until, 1 + rounds * self._state.limits.block_tokens))

    def end(self, steps: int) -> list[Sequence]:
        """`steps` iterations have been run; returns those whose answer is full, in order of seats."""
        growing = self._growing
        for _ in range(steps - 1):
            self.iterations += 1
            if self.iterations in growing:
                self.begin()
        self.iterations += 1
        self.context += steps * len(self.members)
        ended: list[Sequence] = []
        while self._full and self._full[0][0] <= self.iterations:
            sequence = self._next_full()
            heapq.heappop(self._full)
            if sequence is not None and sequence not in ended:
                ended.append(sequence)
        return ended

    def _next_full(self) -> Sequence | None:
        """The member that the first entry of the heap is about; None when it is about one that has left."""
        at, _, name = self._full[0]
        sequence = self.members.get(name)
        return sequence if sequence is not None and sequence.full_at == at else None

    def _plan_growth(self, sequence: Sequence) -> None:
        room = len(sequence.blocks) * self._state.limits.block_tokens - sequence.computed
        sequence.grow_at = self.iterations + room
        self._growing.setdefault(sequence.grow_at, []).append(sequence)
