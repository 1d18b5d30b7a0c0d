"""How a sequence goes from one instance to another: in rounds while it goes on decoding, the last round short.

Source and target each keep their side here. The target reserves room first; a round carries full blocks that will not change
any more; when little is left the sequence stands still, the rest follows, and the target owns it from the moment it has that
(Llumnix, OSDI 2024, section 4.2). Until the target says so, the source keeps everything, so either side may die.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from tierline.core.instance_actions import (
    AcceptMove,
    CancelMove,
    ConfirmMove,
    ConfirmRound,
    ImportRound,
    OfferMove,
    RefuseMove,
    SendRound,
    TellMoved,
    TellMoveFailed,
)
from tierline.core.instance_events import (
    MoveAccepted,
    MoveAsked,
    MoveCancelled,
    MoveOffered,
    MoveRefused,
    MoveTaken,
    RoundArrived,
    RoundTaken,
)
from tierline.schedulers.instance_state import InstanceState
from tierline.schedulers.sequence import Phase, Sequence

LAST_ROUND_BLOCKS = 2  # so few blocks are sent with the sequence standing still
MAX_ROUNDS = 8  # a sequence that outruns its rounds stands still then


@dataclass(slots=True)
class Leaving:
    """`sent`: positions the peer has; `sending`: positions of the round under way."""

    to: str
    accepted: bool = False
    sent: int = 0
    sending: bool = False
    rounds: int = 0


class Moves:
    """`settle(sequence)`: told when a sequence goes on here, to say whether it runs or waits to be moved. `tell(sequence)`:
    asked to tell what was made and not told, before another instance goes on."""

    def __init__(
        self, state: InstanceState, settle: Callable[[Sequence], None], tell: Callable[[Sequence], None]
    ) -> None:
        self._state = state
        self._settle = settle
        self._tell = tell
        self._leaving: dict[str, Leaving] = {}
        self._source: dict[str, str] = {}  # arriving attempt -> where from
        self._lost: set[str] = set()  # peers that are gone; their last offers may still be under way
        self._unanswered: set[tuple[str, str]] = (
            set()
        )  # attempt, peer: given up, but the peer's answer is still to come

    @property
    def arriving(self) -> int:
        return len(self._source)

    # --- the source's side

    def ask(self, event: MoveAsked) -> None:
        sequence = self._state.sequences.get(event.request_id)
        if sequence is None:
            return
        if going := self._leaving.get(event.request_id):
            if going.to != event.to:
                self._state.out.append(TellMoveFailed(event.request_id, event.to, "it is on its way elsewhere"))
            return
        if sequence.phase not in (Phase.RUNNING, Phase.HELD) or not sequence.is_decoding:
            self._state.out.append(TellMoveFailed(event.request_id, event.to, "its prompt is not done"))
            return
        if (event.request_id, event.to) in self._unanswered:  # its answer would be taken for one to this offer
            self._state.out.append(TellMoveFailed(event.request_id, event.to, "it has not answered an earlier offer"))
            return
        self._leaving[event.request_id] = Leaving(event.to)
        offered = structs.replace(sequence.request, made=sequence.made)
        self._state.out.append(OfferMove(offered, event.to, sequence.computed))

    def accepted(self, event: MoveAccepted) -> None:
        leaving = self._answered(event.request_id, event.peer)
        if leaving is None:
            self._state.out.append(CancelMove(event.request_id, event.peer))
            return
        leaving.accepted, leaving.sent = True, event.cached_tokens
        self.advance(self._state.sequences[event.request_id])

    def advance(self, sequence: Sequence) -> None:
        """Send the next round of a sequence that leaves, if one is due."""
        leaving = self._leaving.get(sequence.request_id)
        if leaving is None or not leaving.accepted or leaving.sending or sequence.in_step:
            return
        block = self._state.limits.block_tokens
        left = self._state.kv.needed(sequence.computed) - leaving.sent // block
        final = sequence.phase is Phase.HELD or left <= LAST_ROUND_BLOCKS or leaving.rounds >= MAX_ROUNDS
        until = sequence.computed if final else sequence.computed // block * block
        if final:
            self._tell(sequence)
            self._state.stop(sequence)
            sequence.phase = Phase.LEAVING
        leaving.sending = True
        leaving.rounds += 1
        blocks = tuple(sequence.blocks[leaving.sent // block : self._state.kv.needed(until)])
        send = SendRound(sequence.request_id, leaving.to, leaving.sent, until, blocks, sequence.made, final)
        self._state.out.append(send)

    def round_taken(self, event: RoundTaken) -> None:
        leaving = self._answered(event.request_id, event.peer)
        if leaving is not None:
            leaving.sending, leaving.sent = False, event.until
            self.advance(self._state.sequences[event.request_id])

    def refused(self, event: MoveRefused) -> None:
        if self._answered(event.request_id, event.peer) is not None:
            self._fail(event.request_id, event.reason)

    def taken(self, event: MoveTaken) -> None:
        if self._answered(event.request_id, event.peer) is not None:
            del self._leaving[event.request_id]
            self._state.drop(self._state.sequences[event.request_id])

    def give_up(self, sequence: Sequence, reason: str = "") -> None:
        """The sequence has ended or lost its blocks here: the peer need not wait for it. `reason`: it goes on here."""
        leaving = self._leaving.pop(sequence.request_id, None)
        if leaving is not None:
            self._state.out.append(CancelMove(sequence.request_id, leaving.to))
            if reason:
                self._state.out.append(TellMoveFailed(sequence.request_id, leaving.to, reason))
            if leaving.sending or not leaving.accepted:
                self._unanswered.add((sequence.request_id, leaving.to))
        self._source.pop(sequence.request_id, None)

    def is_leaving(self, sequence: Sequence) -> bool:
        return sequence.request_id in self._leaving

    # --- the target's side

    def offered(self, event: MoveOffered) -> None:
        state, request = self._state, event.request
        reason = self._why_not(event)
        if reason:
            state.out.append(RefuseMove(request.request_id, event.source, reason))
            return
        sequence = state.add(request, Phase.ARRIVING)
        found = state.prefix(sequence)[: event.tokens // state.limits.block_tokens]
        state.kv.retain(found)
        rest = state.kv.needed(event.tokens + 1) - len(found)
        taken = state.kv.take(rest)
        if len(taken) < rest:
            state.kv.release(found)
            state.drop(sequence)
            state.out.append(RefuseMove(request.request_id, event.source, "it has too few free KV blocks"))
            return
        state.place(sequence, found, taken)
        self._source[request.request_id] = event.source
        state.out.append(AcceptMove(request.request_id, event.source, sequence.computed))

    def _why_not(self, event: MoveOffered) -> str:
        state = self._state
        if event.source in self._lost:
            return "its source is gone"
        if event.request.request_id in state.sequences:
            return "it has the request already"
        if not state.may_decode:
            return "it may not decode"
        if len(state.running) + self.arriving >= state.limits.sequence_limit:
            return "it has as many sequences as it may"
        return ""

    def cancelled(self, event: MoveCancelled) -> None:
        """The source has given up the move."""
        if self._source.get(event.request_id) == event.source:
            del self._source[event.request_id]
            self._state.drop(self._state.sequences[event.request_id])

    def round_arrived(self, event: RoundArrived) -> None:
        state = self._state
        sequence = state.sequences.get(event.request_id)
        if sequence is None or self._source.get(event.request_id) != event.source:
            return  # given up meanwhile; the source has been told, or is dead
        if not state.grow(sequence, event.until):
            del self._source[event.request_id]
            state.drop(sequence)
            state.out.append(RefuseMove(event.request_id, event.source, "it has no KV blocks left"))
            return
        block = state.limits.block_tokens
        blocks = tuple(sequence.blocks[event.first // block : state.kv.needed(event.until)])
        state.out.append(ImportRound(event.request_id, event.first, event.until, blocks))
        sequence.tokens = [*sequence.request.prompt, *event.made]
        sequence.computed = event.until
        sequence.told = len(event.made)
        state.register(sequence)
        if not event.final:
            state.out.append(ConfirmRound(event.request_id, event.source, event.until))
            return
        del self._source[event.request_id]
        state.out.append(ConfirmMove(event.request_id, event.source))
        state.out.append(TellMoved(event.request_id, event.source))
        self._settle(sequence)

    # --- both

    def peer_lost(self, peer: str) -> None:
        self._lost.add(peer)
        self._unanswered = {each for each in self._unanswered if each[1] != peer}
        for request_id in [key for key, leaving in self._leaving.items() if leaving.to == peer]:
            self._fail(request_id, f"instance {peer} was lost")
        for request_id in [key for key, source in self._source.items() if source == peer]:
            del self._source[request_id]
            self._state.drop(self._state.sequences[request_id])

    def _answered(self, request_id: str, peer: str) -> Leaving | None:
        """The move that a peer's answer is about, if it is still on. Offers and rounds have one answer each."""
        if (request_id, peer) in self._unanswered:
            self._unanswered.discard((request_id, peer))
            return None
        leaving = self._leaving.get(request_id)
        return leaving if leaving is not None and leaving.to == peer else None

    def _fail(self, request_id: str, reason: str) -> None:
        leaving = self._leaving.pop(request_id)
        sequence = self._state.sequences[request_id]
        self._state.out.append(TellMoveFailed(request_id, leaving.to, reason))
        if sequence.phase is Phase.LEAVING:
            self._settle(sequence)
