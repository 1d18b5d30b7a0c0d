"""The scheduler of one instance: which sequences are in its next iteration, which image is encoded, who comes and goes.

A state machine without I/O, as that of the job tier: `handle(now_ns, event) -> [action]`. The engine of a live instance and
the simulator drive the same one. Hard limits hold here: KV blocks, token budget, number of sequences, roles, and that no
position is computed before its image is encoded. A batching policy proposes, within a frozen view.

It has two lanes that never wait for each other: iterations (`RunStep` … `StepEnded`) and the encoder (`EncodeImage` …
`EncodeEnded`). A sequence's next iteration is decided only when the one before has ended.

Over 400 lines: composing an iteration and ending it are two sides of the same invariants (`_chunks`, `_every`, `_together`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from operator import itemgetter

from tierline.core.batch_view import EVERY_DECODE, BatchPolicy, Share
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
    SleepAsked,
    StepEnded,
    WakeAsked,
    WakeEnded,
)
from tierline.core.request import ALL_ROLES, FinishReason, Role
from tierline.schedulers.instance_images import Encoder
from tierline.schedulers.instance_moves import Moves
from tierline.schedulers.instance_sleep import Sleep
from tierline.schedulers.instance_state import InstanceLimits, InstanceState
from tierline.schedulers.instance_view import VIEWED_BARRED, batch_view, prefix_now
from tierline.schedulers.kv_blocks import BlockKeys
from tierline.schedulers.lockstep import Lockstep
from tierline.schedulers.sequence import HASHED_KEYS, Phase, Sequence


@dataclass(frozen=True, slots=True)
class Simulated:
    """Of an engine whose tokens mean nothing: `token` is what it draws, but for end tokens; `block_keys` name the contents
    of blocks. With `lockstep`, sequences that only decode are advanced together, which changes no result. Output is told
    with the first token and the last, and in between when `progress` is asked for: nobody reads along."""

    block_keys: BlockKeys
    token: int = 0
    lockstep: bool = True


@dataclass(slots=True)
class _Plan:
    """An iteration being put together: what is left of the budget and the seats, its chunks, those of them that
    `EVERY_DECODE` stands for, and how many beside them go in lockstep."""

    budget: int
    seats: int
    chunks: dict[str, Chunk] = field(default_factory=dict)
    every: tuple[int, int] = (0, 0)
    together: int = 0


class InstanceScheduler:
    """`name` is what peers know this instance by. `simulated`: for the simulator."""

    def __init__(
        self,
        name: str,
        limits: InstanceLimits,
        policy: BatchPolicy,
        roles: Role = ALL_ROLES,
        simulated: Simulated | None = None,
    ) -> None:
        self._limits = limits
        self._policy = policy
        self._state = InstanceState(limits, roles, simulated.block_keys if simulated else HASHED_KEYS)
        self._encoder = Encoder(self._state, name, self._image_lost)
        self._moves = Moves(self._state, self._settle, self._tell)
        self._sleep = Sleep(self._state, self._encoder)
        self._lockstep = Lockstep(self._state, simulated.token) if simulated and simulated.lockstep else None
        self._tells_each = simulated is None
        self._step = 0
        self._iterations = 0  # that have ended, and the one under way
        self._busy_ns = 0  # that those which have ended took
        self._begun_ns = 0  # when the last was decided
        self._running = False  # an iteration is under way, and these are its chunks:
        self._chunks: list[Chunk] = []
        self._every: tuple[int, int] = (0, 0)  # of them those that `EVERY_DECODE` stands for
        self._together = False  # those in lockstep are in the iteration too
        self._unconfirmed = Role(0)  # roles given that no batch has shown yet
        self._awaits_batch = False  # there are such
        self._again = False  # the policy would only say again that all decode

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
        has_memory = self._sleep.has_memory
        held = len(state.sequences) - len(state.running) - len(state.queue) - self._moves.arriving
        return TellStatus(
            running=len(state.running),
            waiting=len(state.queue),
            held=held,
            encoding=self._encoder.waiting,
            free_blocks=state.kv.free if has_memory else 0,
            total_blocks=state.kv.total if has_memory else 0,
            prefix_queries=state.prefix_queries,
            prefix_hits=state.prefix_hits,
            encoded_images=self._encoder.encoded,
            pool_bytes=state.pool.used_bytes,
            preemptions=state.preemptions,
            steps=self._iterations,
        )

    # --- events

    def progress(self) -> tuple[TellTokens, ...]:
        """All output that was not told, which is told by this; for simulated engines."""
        if self._lockstep:
            self._lockstep.settle_all()
        return tuple([told for each in self._state.sequences.values() if (told := _untold(each))])

    def unasked(self) -> int:
        """So many iterations, the one under way included, can be run before something has to be decided; for simulated
        engines, after something was said. 1 where that may be a matter of decision."""
        lockstep, state = self._lockstep, self._state
        if not (self._again and self._running and lockstep) or self._chunks or self._awaits_batch or state.parked:
            return 1
        if lockstep.joined or lockstep.left or len(lockstep.members) != len(state.running):
            return 1
        return self._most(lockstep) if self._nobody_may_come() else 1

    def ran_unasked(self, now_ns: int, count: int) -> None:
        """`count` iterations have ended, fewer than could be run unasked, and another has begun."""
        assert self._lockstep is not None
        self._state.now_ns = now_ns
        self._iterations += count
        self._busy_ns += now_ns - self._begun_ns
        self._begun_ns = now_ns
        ended = self._lockstep.end(count)
        assert not ended, f"{len(ended)} answers are full, and nobody was asked"
        self._lockstep.begin()

    def handle(self, now_ns: int, event: InstanceEvent) -> list[InstanceAction]:
        """What is to be done now that `event` has happened, in this order."""
        self._state.now_ns = now_ns
        match event:
            case StepEnded():
                self._step_ended(event)
            case RequestQueued():
                self._queued(event)
            case RequestCancelled():
                self._cancelled(event.request_id)
            case EncodeAsked():
                self._sleep.encode_asked(event)
            case EncodeEnded():
                self._encoder.ended(event)
            case EmbeddingsArrived():
                self._sleep.embeddings_arrived(event)
            case EncodeFailed():
                self._encoder.failed(event.content_hash, event.error)
            case RolesSet():
                self._roles_set(event.roles)
            case SleepAsked():
                self._sleep.ask()
            case WakeAsked():
                self._sleep.wake(event.roles)
            case WakeEnded():
                self._sleep.ended()
            case MoveAsked():
                self._alone(event.request_id)
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
        if not self._running:
            self._next_step()
            if self._sleep.asked and not self._running:
                self._sleep.fall()
        out, self._state.out = self._state.out, []
        if self._awaits_batch and Role.ENCODE in self._unconfirmed and any(isinstance(a, EncodeImage) for a in out):
            self._shown(Role.ENCODE)
            out += self._state.out
            self._state.out = []
        return out

    def _queued(self, event: RequestQueued) -> None:
        request = event.request
        if request.request_id in self._state.sequences:
            return
        if not self._state.may_prefill:
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
        self._alone(request_id)
        sequence = self._state.sequences.get(request_id)
        if sequence is not None:
            self._moves.give_up(sequence)
            self._state.drop(sequence)

    def _image_lost(self, content_hash: str, error: str) -> None:
        for sequence in list(self._state.wanted.get(content_hash, {}).values()):
            self._end(sequence, "error", f"an image could not be encoded: {error}")

    def _roles_set(self, roles: Role) -> None:
        state = self._state
        self._unconfirmed = (self._unconfirmed | (roles & ~state.roles)) & roles
        self._awaits_batch = bool(self._unconfirmed)
        state.set_roles(roles)
        if Role.PREFILL not in roles:
            for sequence in list(state.queue):
                self._tell(sequence)
                state.out.append(TellReturned(sequence.request_id, sequence.made, "it may no longer prefill"))
                state.drop(sequence)
        for sequence in list(state.sequences.values()):
            if sequence.phase is Phase.HELD or (sequence.phase is Phase.RUNNING and sequence.is_decoding):
                if Role.DECODE not in roles:
                    self._alone(sequence.request_id)
                self._settle(sequence)
        state.out.append(TellRoles(roles, by_batch=False))

    def _settle(self, sequence: Sequence) -> None:
        """A sequence past its prompt runs here if it may, else waits to be moved."""
        if self._state.may_decode:
            self._state.run(sequence)
        elif sequence.phase is not Phase.HELD:
            if sequence.in_step:
                return  # asked again when the iteration has ended
            self._state.stop(sequence)
            sequence.phase = Phase.HELD
            self._tell(sequence)
            self._state.out.append(TellPrefilled(sequence.request_id))
            self._moves.advance(sequence)

    # --- iterations

    def _step_ended(self, event: StepEnded) -> None:
        assert event.step == self._step, f"step {event.step} ended, {self._step} was under way"
        chunks, self._chunks, self._running = self._chunks, [], False
        self._iterations += event.count - 1
        self._busy_ns += self._state.now_ns - self._begun_ns
        self._state.iteration_ended()
        sampled = dict(event.sampled)
        first, last = self._every
        if self._together:
            assert self._lockstep is not None
            full = self._lockstep.end(event.count)
            if not (full or sampled or chunks):
                return
            ended = {each.request_id: each for each in full}
            for name in sampled:
                if member := self._lockstep.members.get(name):
                    ended[name] = member
            token = self._lockstep.token
            for chunk in chunks[:first]:
                self._computed(chunk, sampled)
            # In order of admission, as if each had been named.
            ends: list[tuple[int, Chunk | Sequence]] = [(each.seat, each) for each in ended.values()]
            for chunk in chunks[first:last]:
                sampled.setdefault(chunk.request_id, token)
                if sequence := self._state.sequences.get(chunk.request_id):
                    ends.append((sequence.seat, chunk))
            if len(ends) > 1:
                ends.sort(key=itemgetter(0))
            for _, one in ends:
                if isinstance(one, Chunk):
                    self._computed(one, sampled)
                    continue
                self._lockstep.leave(one)
                one.tokens[-1] = sampled.get(one.request_id, token)
                finish = self._finish(one, one.tokens[-1])
                assert finish is not None
                self._end(one, finish)
            chunks = chunks[last:]
        for chunk in chunks:
            self._computed(chunk, sampled)

    def _computed(self, chunk: Chunk, sampled: Mapping[str, int]) -> None:
        sequence = self._state.sequences.get(chunk.request_id)
        if sequence is None or not sequence.in_step:
            return  # cancelled, or preempted, during the iteration
        sequence.in_step = 0
        sequence.computed = chunk.first + chunk.tokens
        self._state.register(sequence)
        self._state.free_passed_images(sequence)
        if chunk.samples:
            self._sampled(sequence, sampled[chunk.request_id])
        else:
            self._moves.advance(sequence)

    def _sampled(self, sequence: Sequence, token: int) -> None:
        sequence.tokens.append(token)
        if finish := self._finish(sequence, token):
            self._end(sequence, finish)
            return
        if self._tells_each or sequence.output_tokens == len(sequence.request.made) + 1:
            self._tell(sequence)
        if not self._state.may_decode:
            self._settle(sequence)
        else:
            self._moves.advance(sequence)
            if self._lockstep and sequence.phase is Phase.RUNNING and not self._moves.is_leaving(sequence):
                self._lockstep.join(sequence)

    def _tell(self, sequence: Sequence) -> None:
        """Tell what was made and not told."""
        if told := _untold(sequence):
            self._state.out.append(told)

    def _alone(self, request_id: str) -> None:
        """The sequence is no longer in lockstep; in the iteration under way it has a chunk of its own."""
        sequence = self._lockstep.members.get(request_id) if self._lockstep else None
        if sequence is None:
            return
        assert self._lockstep is not None
        self._lockstep.leave(sequence)
        if self._running and self._together:
            first, last = self._every
            sequence.in_step = 1
            chunk = Chunk(request_id, sequence.computed, 1, (), fresh=False, samples=True)
            self._chunks.insert(last, chunk)
            self._every = (first, last + 1)

    def _finish(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling, made = sequence.request.sampling, sequence.output_tokens
        ends = token in sampling.stop_token_ids or (not sampling.ignore_eos and token in self._limits.end_tokens)
        if ends and made >= sampling.min_tokens:
            return "stop"
        full = len(sequence.tokens) >= self._limits.longest
        return "length" if made >= sampling.max_tokens or full else None

    def _end(self, sequence: Sequence, finish: FinishReason, reason: str = "") -> None:
        cached, told = sequence.cached_tokens, sequence.told
        tokens = tuple(sequence.tokens[len(sequence.request.prompt) + told :])
        self._moves.give_up(sequence)
        self._state.drop(sequence)
        self._state.out.append(TellTokens(sequence.request_id, told, tokens, finish, cached, reason))

    def _next_step(self) -> None:
        state = self._state
        if not state.running and self._all_barred():
            return
        lockstep = self._lockstep
        if self._again and lockstep and self._nobody_may_come() and self._all_together(lockstep):
            return
        view = batch_view(
            state, lockstep, self._encoder.waiting, (self._iterations, self._busy_ns), self._ask_for_images
        )
        plan = _Plan(self._limits.token_budget, self._limits.sequence_limit)
        shares = self._policy.compose(view)
        for share in shares:
            if share is EVERY_DECODE:
                self._plan_decodes(plan)
            else:
                self._plan_share(plan, share)
        if not plan.chunks and not plan.together:
            return
        self._step += 1
        self._iterations += 1
        self._running, self._together, self._every = True, bool(plan.together), plan.every
        self._begun_ns = state.now_ns
        self._chunks = list(plan.chunks.values())
        for chunk in self._chunks:
            sequence = state.sequences[chunk.request_id]
            sequence.in_step = chunk.tokens
            sequence.fresh = False
            sequence.told_blocks = len(sequence.blocks)
            if self._awaits_batch:
                self._shown(Role.DECODE if sequence.is_decoding else Role.PREFILL)
        if lockstep is None:
            state.out.append(RunStep(self._step, tuple(self._chunks)))
            return
        joined, left = lockstep.news()
        context, most = 0, 1
        if plan.together:
            if self._awaits_batch:
                self._shown(Role.DECODE)
            context = lockstep.context
            quiet = not self._chunks and self._nobody_may_come() and not any(each.ready_tokens for each in view.begun)
            self._again = quiet and shares == (EVERY_DECODE,)
            if self._again:
                most = self._most(lockstep)
        state.out.append(RunStep(self._step, tuple(self._chunks), plan.together, context, joined, left, most))

    def _all_together(self, lockstep: Lockstep) -> bool:
        """Another iteration of nothing but all in lockstep, if it needs no decision."""
        members, limits = len(lockstep.members), self._limits
        if members != len(self._state.running) or not lockstep.may_run(0):
            return False
        if members > limits.sequence_limit or members > limits.token_budget:
            return False
        lockstep.begin()
        self._step += 1
        self._iterations += 1
        self._running = self._together = True
        self._begun_ns = self._state.now_ns
        self._chunks, self._every = [], (0, 0)
        if self._awaits_batch:
            self._shown(Role.DECODE)
        joined, left = lockstep.news()
        self._state.out.append(RunStep(self._step, (), members, lockstep.context, joined, left, self._most(lockstep)))
        return True

    def _most(self, lockstep: Lockstep) -> int:
        """Iterations that may follow each other unasked. Whose prefix is forgotten may lack an image that he has not asked
        for, so while somebody waits nothing is forgotten between."""
        kv = self._state.kv
        return lockstep.most(kv.blank if self._state.queued_with_images else kv.free)

    def _plan_decodes(self, plan: _Plan) -> None:
        """All that decode, in order of admission: those in lockstep at one stroke, if they are sure to fit."""
        first = len(plan.chunks)
        decoding = [each for each in self._state.one_by_one() if each.is_decoding]
        if self._lockstep and self._lockstep.members:
            members, others = len(self._lockstep.members), len(decoding)
            room = min(plan.budget, plan.seats - len(plan.chunks))
            named = others and any(each.request_id in plan.chunks for each in decoding)
            if not named and members + others <= room and self._lockstep.may_run(others):
                self._lockstep.begin()
                plan.together = members
                plan.budget -= members
                plan.seats -= members
            else:
                for name in list(self._lockstep.members):
                    self._alone(name)
                decoding = [each for each in self._state.one_by_one() if each.is_decoding]
        for sequence in decoding:
            self._plan_share(plan, Share(sequence.request_id, 1))
        plan.every = (first, len(plan.chunks))

    def _plan_share(self, plan: _Plan, share: Share) -> None:
        sequence = self._state.sequences.get(share.request_id)
        if sequence is None or share.tokens <= 0 or share.request_id in plan.chunks:
            return
        if len(plan.chunks) >= plan.seats:
            return
        if sequence.phase is Phase.WAITING and not self._admit(sequence):
            return
        if sequence.phase is not Phase.RUNNING:
            return
        if sequence.locked >= 0:
            if plan.together:
                return  # it is in the iteration already
            self._alone(share.request_id)
        # A policy without chunks may pass the budget with one long prompt, since it could never run otherwise.
        alone = not plan.chunks and not plan.together
        room = plan.budget if self._policy.chunked or not alone else len(sequence.tokens)
        chunk = self._chunk(sequence, share, room, plan.chunks)
        if chunk is not None:
            plan.chunks[share.request_id] = chunk
            plan.budget -= chunk.tokens

    def _admit(self, sequence: Sequence) -> bool:
        if not self._state.may_prefill or self._seats <= 0:
            return False
        if not self._state.admit(sequence):
            return False
        self._ask_for_images(sequence)
        return True

    def _nobody_may_come(self) -> bool:
        """Whether nobody waits who could be admitted, or whose images might have to be asked for."""
        state = self._state
        return not state.queue or (self._seats <= 0 and not state.queued_with_images) or self._all_barred()

    def _all_barred(self) -> bool:
        """Whether images bar all who wait from computing anything, as policies would see it; also if nobody waits."""
        state = self._state
        if state.queued_with_images < len(state.queue) or len(state.queue) > VIEWED_BARRED:
            return False
        block = state.limits.block_tokens
        for sequence in state.queue:
            start = len(prefix_now(state, sequence, self._ask_for_images)) * block
            if sequence.ready_until(start, state.pool) > start:
                return False
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
        self._alone(sequence.request_id)
        self._moves.give_up(sequence, "it was preempted")
        if self._state.may_prefill:
            self._state.preempt(sequence)
            self._ask_for_images(sequence)
        else:
            self._state.preemptions += 1
            self._tell(sequence)
            made = sequence.made
            self._state.drop(sequence)
            self._state.out.append(
                TellReturned(sequence.request_id, made, "it was preempted and may not be prefilled here")
            )

    def _shown(self, role: Role) -> None:
        """A batch of this role has run: the first one confirms the role."""
        if role & self._unconfirmed:
            self._unconfirmed &= ~role
            self._awaits_batch = bool(self._unconfirmed)
            if not self._unconfirmed:
                self._state.out.append(TellRoles(self._state.roles, by_batch=True))


def _untold(sequence: Sequence) -> TellTokens | None:
    """What it has made that was not told, which is told from now on; None where all was."""
    first = sequence.told
    tokens = tuple(sequence.tokens[len(sequence.request.prompt) + first :])
    if not tokens:
        return None
    sequence.told += len(tokens)
    return TellTokens(sequence.request_id, first, tokens, None, sequence.cached_tokens)
