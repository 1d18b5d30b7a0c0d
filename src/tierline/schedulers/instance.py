"""The scheduler of one instance: which sequences are in its next iteration, which image is encoded, who comes and goes.

A state machine without I/O, as that of the job tier: `handle(now_ns, event) -> [action]`. The engine of a live instance and
the simulator drive the same one. Hard limits hold here: KV blocks, token budget, number of sequences, roles, and that no
position is computed before its image is encoded. A batching policy proposes, within a frozen view.

It has two lanes that never wait for each other: iterations (`RunStep` … `StepEnded`) and the encoder (`EncodeImage` …
`EncodeEnded`). A sequence's next iteration is decided only when the one before has ended.
"""

from __future__ import annotations

from collections.abc import Container

from tierline.core.batch_view import BatchPolicy, BatchView, SequenceView, Share
from tierline.core.instance_actions import (
    Chunk,
    EncodeImage,
    InstanceAction,
    RunStep,
    TellImagesNeeded,
    TellPrefilled,
    TellReturned,
    TellRoles,
    TellStatus,
    TellTokens,
)
from tierline.core.instance_events import (
    EmbeddingsArrived,
    EncodeAsked,
    EncodeEnded,
    EncodeFailed,
    InstanceEvent,
    MoveAccepted,
    MoveAsked,
    MoveCancelled,
    MoveOffered,
    MoveRefused,
    MoveTaken,
    PeerLost,
    RequestCancelled,
    RequestQueued,
    RolesSet,
    RoundArrived,
    RoundTaken,
    StepEnded,
)
from tierline.core.request import ALL_ROLES, FinishReason, Role
from tierline.schedulers.instance_images import Encoder
from tierline.schedulers.instance_moves import Moves
from tierline.schedulers.instance_state import InstanceLimits, InstanceState
from tierline.schedulers.sequence import Phase, Sequence

VIEWED_WAITING = 32  # of the queue, a policy sees so many that could begin,
VIEWED_BARRED = 96  # and so many between them whose first image is not encoded: these hold up nobody


class InstanceScheduler:
    """`name` is what peers know this instance by."""

    def __init__(self, name: str, limits: InstanceLimits, policy: BatchPolicy, roles: Role = ALL_ROLES) -> None:
        self._limits = limits
        self._policy = policy
        self._state = InstanceState(limits, roles)
        self._encoder = Encoder(self._state, name, self._image_lost)
        self._moves = Moves(self._state, self._settle)
        self._step = 0
        self._chunks: tuple[Chunk, ...] = ()  # of the iteration under way
        self._unconfirmed = Role(0)  # roles given that no batch has shown yet

    # --- questions

    @property
    def roles(self) -> Role:
        return self._state.roles

    def will_encode(self, content_hash: str) -> bool:
        """Whether the image is being encoded here, or is in the queue for it."""
        return self._encoder.has(content_hash)

    def status(self) -> TellStatus:
        """Counts for routing and people."""
        state = self._state
        held = sum(sequence.phase in (Phase.HELD, Phase.LEAVING) for sequence in state.sequences.values())
        return TellStatus(
            running=len(state.running),
            waiting=len(state.queue),
            held=held,
            encoding=self._encoder.waiting,
            free_blocks=state.kv.free,
            total_blocks=state.kv.total,
            prefix_queries=state.prefix_queries,
            prefix_hits=state.prefix_hits,
            encoded_images=self._encoder.encoded,
            pool_bytes=state.pool.used_bytes,
            preemptions=state.preemptions,
            steps=self._step,
        )

    # --- events

    def handle(self, now_ns: int, event: InstanceEvent) -> list[InstanceAction]:
        """What is to be done now that `event` has happened, in this order."""
        self._state.now_ns = now_ns
        match event:
            case RequestQueued():
                self._queued(event)
            case RequestCancelled():
                self._cancelled(event.request_id)
            case EncodeAsked():
                self._encoder.ask(event)
            case EncodeEnded():
                self._encoder.ended(event)
            case EmbeddingsArrived():
                self._encoder.arrived(event.content_hash, event.size_bytes)
            case EncodeFailed():
                self._encoder.failed(event.content_hash, event.error)
            case StepEnded():
                self._step_ended(event)
            case RolesSet():
                self._roles_set(event.roles)
            case MoveAsked():
                self._moves.ask(event)
            case MoveOffered():
                self._moves.offered(event)
            case MoveAccepted():
                self._moves.accepted(event)
            case MoveRefused():
                self._moves.refused(event)
            case MoveCancelled():
                self._moves.cancelled(event)
            case RoundArrived():
                self._moves.round_arrived(event)
            case RoundTaken():
                self._moves.round_taken(event)
            case MoveTaken():
                self._moves.taken(event)
            case PeerLost():
                self._moves.peer_lost(event.peer)
                self._encoder.forget_peer(event.peer)
        if not self._chunks:
            self._next_step(now_ns)
        out, self._state.out = self._state.out, []
        if Role.ENCODE in self._unconfirmed and any(isinstance(action, EncodeImage) for action in out):
            self._shown(Role.ENCODE)
            out += self._state.out
            self._state.out = []
        return out

    def _queued(self, event: RequestQueued) -> None:
        request = event.request
        if request.request_id in self._state.sequences:
            return
        if Role.PREFILL not in self._state.roles:
            self._state.out.append(TellReturned(request.request_id, request.made, "it may not prefill"))
            return
        if not request.prompt:
            self._state.out.append(TellTokens(request.request_id, 0, (), "error", reason="the prompt is empty"))
            return
        if self._state.kv.needed(len(request.prompt) + len(request.made) + 1) > self._limits.blocks:
            reason = (
                f"{len(request.prompt)} prompt tokens are more than the KV arena of {self._limits.blocks} blocks holds"
            )
            self._state.out.append(TellTokens(request.request_id, len(request.made), (), "error", reason=reason))
            return
        sequence = self._state.add(request, Phase.WAITING)
        self._state.enqueue(sequence)
        self._ask_for_images(sequence, {each for each in event.expected if not self._encoder.has_heard(each)})

    def _ask_for_images(self, sequence: Sequence, expected: Container[str] = ()) -> None:
        missing = self._state.want_images(sequence)
        needed = [each for each in missing if each not in expected and not self._encoder.expects(each)]
        if needed:
            self._state.out.append(TellImagesNeeded(sequence.request_id, tuple(needed)))

    def _cancelled(self, request_id: str) -> None:
        sequence = self._state.sequences.get(request_id)
        if sequence is not None:
            self._moves.give_up(sequence)
            self._state.drop(sequence)

    def _image_lost(self, content_hash: str, error: str) -> None:
        for sequence in list(self._state.wanted.get(content_hash, {}).values()):
            self._end(sequence, sequence.output_tokens, (), "error", f"an image could not be encoded: {error}")

    def _roles_set(self, roles: Role) -> None:
        state = self._state
        self._unconfirmed = (self._unconfirmed | (roles & ~state.roles)) & roles
        state.roles = roles
        if Role.PREFILL not in roles:
            for sequence in list(state.queue):
                state.out.append(TellReturned(sequence.request_id, sequence.made, "it may no longer prefill"))
                state.drop(sequence)
        for sequence in list(state.sequences.values()):
            if sequence.phase is Phase.HELD or (sequence.phase is Phase.RUNNING and sequence.is_decoding):
                self._settle(sequence)
        state.out.append(TellRoles(roles, by_batch=False))

    def _settle(self, sequence: Sequence) -> None:
        """A sequence past its prompt runs here if it may, else waits to be moved."""
        if Role.DECODE in self._state.roles:
            self._state.run(sequence)
        elif sequence.phase is not Phase.HELD:
            if sequence.in_step:
                return  # asked again when the iteration has ended
            self._state.running.pop(sequence.request_id, None)
            sequence.phase = Phase.HELD
            self._state.out.append(TellPrefilled(sequence.request_id))
            self._moves.advance(sequence)

    # --- iterations

    def _step_ended(self, event: StepEnded) -> None:
        assert event.step == self._step, f"step {event.step} ended, {self._step} was under way"
        chunks, self._chunks = self._chunks, ()
        self._state.iteration_ended()
        sampled = dict(event.sampled)
        for chunk in chunks:
            sequence = self._state.sequences.get(chunk.request_id)
            if sequence is None or not sequence.in_step:
                continue  # cancelled, or preempted, during the iteration
            sequence.in_step = 0
            sequence.computed = chunk.first + chunk.tokens
            self._state.register(sequence)
            self._state.free_passed_images(sequence)
            if chunk.samples:
                self._sampled(sequence, sampled[chunk.request_id])
            else:
                self._moves.advance(sequence)

    def _sampled(self, sequence: Sequence, token: int) -> None:
        first = sequence.output_tokens
        sequence.tokens.append(token)
        if finish := self._finish(sequence, token):
            self._end(sequence, first, (token,), finish)
            return
        self._state.out.append(TellTokens(sequence.request_id, first, (token,), cached_tokens=sequence.cached_tokens))
        if Role.DECODE not in self._state.roles:
            self._settle(sequence)
        else:
            self._moves.advance(sequence)

    def _finish(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling, made = sequence.request.sampling, sequence.output_tokens
        ends = token in sampling.stop_token_ids or (not sampling.ignore_eos and token in self._limits.end_tokens)
        if ends and made >= sampling.min_tokens:
            return "stop"
        full = len(sequence.tokens) >= min(self._limits.context_tokens, self._limits.blocks * self._limits.block_tokens)
        return "length" if made >= sampling.max_tokens or full else None

    def _end(
        self, sequence: Sequence, first: int, tokens: tuple[int, ...], finish: FinishReason, reason: str = ""
    ) -> None:
        cached = sequence.cached_tokens
        self._moves.give_up(sequence)
        self._state.drop(sequence)
        self._state.out.append(TellTokens(sequence.request_id, first, tokens, finish, cached, reason))

    def _next_step(self, now_ns: int) -> None:
        state = self._state
        if not state.running and not state.queue:
            return
        chunks: dict[str, Chunk] = {}
        budget = self._limits.token_budget
        for share in self._policy.compose(self._view(now_ns)):
            sequence = state.sequences.get(share.request_id)
            if sequence is None or share.tokens <= 0 or share.request_id in chunks:
                continue
            if len(chunks) == self._limits.sequence_limit:
                break
            if sequence.phase is Phase.WAITING and not self._admit(sequence):
                continue
            if sequence.phase is not Phase.RUNNING:
                continue
            # A policy without chunks may pass the budget with one long prompt, since it could never run otherwise.
            room = budget if self._policy.chunked or chunks else len(sequence.tokens)
            chunk = self._chunk(sequence, share, room, chunks)
            if chunk is not None:
                chunks[share.request_id] = chunk
                budget -= chunk.tokens
        if not chunks:
            return
        self._step += 1
        self._chunks = tuple(chunks.values())
        for chunk in self._chunks:
            sequence = state.sequences[chunk.request_id]
            sequence.in_step = chunk.tokens
            sequence.fresh = False
            sequence.told_blocks = len(sequence.blocks)
            self._shown(Role.DECODE if sequence.is_decoding else Role.PREFILL)
        state.out.append(RunStep(self._step, self._chunks))

    def _admit(self, sequence: Sequence) -> bool:
        if Role.PREFILL not in self._state.roles or self._seats <= 0:
            return False
        if not self._state.admit(sequence):
            return False
        self._ask_for_images(sequence)
        return True

    @property
    def _seats(self) -> int:
        return self._limits.sequence_limit - len(self._state.running) - self._moves.arriving

    def _chunk(self, sequence: Sequence, share: Share, room: int, chunks: dict[str, Chunk]) -> Chunk | None:
        """The share within what is ready, what the budget leaves, and the blocks there are; preempts for a decode."""
        state = self._state
        ready = sequence.ready_until(sequence.computed, state.pool) - sequence.computed
        tokens = min(share.tokens, ready, room)
        if tokens <= 0:
            return None
        while not state.grow(sequence, sequence.computed + tokens):
            victim = max(state.running.values(), key=Sequence.order)
            chunks.pop(victim.request_id, None)
            self._preempt(victim)
            if victim is sequence:
                return None
        return Chunk(
            request_id=sequence.request_id,
            first=sequence.computed,
            tokens=tokens,
            new_blocks=tuple(sequence.blocks[sequence.told_blocks :]),
            fresh=sequence.fresh,
            samples=sequence.computed + tokens == len(sequence.tokens),
        )

    def _preempt(self, sequence: Sequence) -> None:
        self._moves.give_up(sequence, "it was preempted")
        if Role.PREFILL in self._state.roles:
            self._state.preempt(sequence)
            self._ask_for_images(sequence)
        else:
            self._state.preemptions += 1
            made = sequence.made
            self._state.drop(sequence)
            self._state.out.append(
                TellReturned(sequence.request_id, made, "it was preempted and may not be prefilled here")
            )

    def _view(self, now_ns: int) -> BatchView:
        state, block = self._state, self._limits.block_tokens
        waiting: list[SequenceView] = []
        barred = 0
        for sequence in state.queue if Role.PREFILL in state.roles else ():
            if barred == VIEWED_BARRED or len(waiting) - barred == VIEWED_WAITING:
                break
            self._ask_for_images(sequence)  # of the prefix it counts on, a part may have been given up since
            found = state.prefix(sequence)
            needed = state.kv.needed(len(sequence.tokens)) - state.kv.held(found)
            waiting.append(sequence.view(state.pool, len(found) * block, needed))
            barred += not waiting[-1].ready_tokens
        return BatchView(
            now_ns=now_ns,
            running=tuple(each.view(state.pool, each.computed, 0) for each in state.running.values()),
            waiting=tuple(waiting),
            free_blocks=state.kv.free,
            token_budget=self._limits.token_budget,
            sequence_limit=self._limits.sequence_limit,
        )

    def _shown(self, role: Role) -> None:
        """A batch of this role has run: the first one confirms the role."""
        if role & self._unconfirmed:
            self._unconfirmed &= ~role
            if not self._unconfirmed:
                self._state.out.append(TellRoles(self._state.roles, by_batch=True))
