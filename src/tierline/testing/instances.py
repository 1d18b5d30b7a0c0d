"""A fake serving cluster for the instance scheduler: engines, peers and a serving scheduler that do what they are told.

Whatever may take its time (steps, encodes, messages: in order between two parties only) waits until somebody says `advance`.
After every event it is counted from outside who holds which blocks and images. `fake_engine` says how wrong KV is found.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tierline.core.batch_view import BatchPolicy
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
    TellStatus,
)
from tierline.core.instance_events import (
    EmbeddingsArrived,
    EncodeAsked,
    EncodeEnded,
    EncodeFailed,
    MoveAccepted,
    MoveCancelled,
    MoveOffered,
    MoveRefused,
    MoveTaken,
    RequestQueued,
    RolesSet,
    RoundArrived,
    RoundTaken,
    WakeAsked,
    WakeEnded,
)
from tierline.core.request import FinishReason, Request, Role
from tierline.policies.batching import make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_images import EVICTED
from tierline.schedulers.instance_state import InstanceLimits
from tierline.schedulers.sequence import Phase
from tierline.testing.fake_engine import FakeEngine, Known, Payload, embedding
from tierline.testing.fake_serving import SERVING, FakeServing

IMAGE_BYTES = 10


class Answered(Protocol):
    """A request as its client sees it, and the right answer to it."""

    owner: str
    cancelled: bool
    finish: FinishReason | None
    right: tuple[int, ...]

    @property
    def request_id(self) -> str: ...

    @property
    def made(self) -> tuple[int, ...]: ...

    @property
    def over(self) -> bool: ...


class Serving(Protocol):
    """Who tells the instances what to do: `FakeServing`, or the real scheduler in `testing.serving`."""

    broken: set[str]

    @property
    def answers(self) -> Mapping[str, Answered]: ...

    def submit(self, request: Request, announce: bool = False) -> None: ...

    def joined(self, name: str, roles: Role) -> None: ...

    def lost(self, name: str) -> None: ...

    def told(self, name: str, tell: Tell) -> None: ...

    def waiting(self) -> list[str]:
        """Requests whose clients will submit them again."""
        ...

    def resubmit(self, request_id: str) -> None: ...


class FakeCluster:
    """`InstanceScheduler`s with engines, and messages between them. Raises AssertionError the moment something is wrong."""

    tells_status = False  # whether instances tell their load when it has changed

    def __init__(
        self,
        limits: InstanceLimits,
        roles: Sequence[Role],
        policies: Sequence[str | Callable[[], BatchPolicy]] = ("sarathi",),
        seed: int = 0,
    ) -> None:
        self.limits = limits
        self.policies = policies
        self.random = random.Random(seed)
        self.now_ns = 0
        self.count = 0
        self.schedulers: dict[str, InstanceScheduler] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.channels: dict[tuple[str, str], deque[Payload | Tell]] = {}
        self.delivered: dict[str, Role] = {}  # the roles that an instance has been told
        self.seen: Counter[str] = Counter()  # how often each kind of action was wanted
        self.dying: list[str] = []  # they are dead, and the serving scheduler does not know yet
        self.statuses: dict[str, TellStatus] = {}
        self.serving: Serving = self.make_serving()
        for own in roles:
            self.join(own)

    def make_serving(self) -> Serving:
        return FakeServing(self)

    def join(self, roles: Role) -> str:
        """Another instance is ready."""
        name, make = f"i{self.count}", self.policies[self.count % len(self.policies)]
        self.count += 1
        policy = make_batching(make) if isinstance(make, str) else make()
        self.schedulers[name] = InstanceScheduler(name, self.limits, policy, roles)
        self.engines[name] = FakeEngine(self.limits, policy.chunked)
        self.delivered[name] = roles
        self.serving.joined(name, roles)
        return name

    # --- what takes its time

    def pending(self) -> list[tuple[str, str, str]]:
        """All that could happen next: (what, where, from whom)."""
        found = [("message", to, source) for (source, to), queue in self.channels.items() if queue]
        found += [("step", name, "") for name, engine in self.engines.items() if engine.step]
        found += [("encode", name, "") for name, engine in self.engines.items() if engine.encoding]
        found += [("wake", name, "") for name, engine in self.engines.items() if engine.waking]
        found += [("lost", name, "") for name in self.dying]
        found += [("client", request_id, "") for request_id in self.serving.waiting()]
        return found + [("status", name, "") for name, each in self.schedulers.items() if self._news(name, each)]

    def _news(self, name: str, scheduler: InstanceScheduler) -> bool:
        return self.tells_status and self.statuses.get(name) != scheduler.status()

    def advance(self, what: str, name: str, source: str, error: str = "") -> None:
        """One thing of `pending` happens; an encode may end with an error."""
        match what:
            case "message":
                self._deliver(source, name)
            case "step":
                self._event(name, Payload(self.engines[name].finish()))
            case "encode":
                engine = self.engines[name]
                content_hash, engine.encoding = engine.encoding, ""
                error = error if content_hash in engine.pictures else EVICTED
                engine.pictures.discard(content_hash)
                if error and error != EVICTED:
                    self.serving.broken.add(content_hash)
                if not error:
                    engine.embeddings[content_hash] = embedding(content_hash)
                self._event(name, Payload(EncodeEnded(content_hash, 0 if error else IMAGE_BYTES, error)))

            case "wake":
                self.engines[name].waking = False
                self.engines[name].take_memory()
                self._event(name, Payload(WakeEnded()))
            case "status":
                self.statuses[name] = self.schedulers[name].status()
                self.post(name, SERVING, self.statuses[name])
            case "lost":
                self.dying.remove(name)
                self.channels.pop((name, SERVING), None)
                self.serving.lost(name)
            case "client":
                self.serving.resubmit(name)

    def kill(self, name: str, forget: bool, last_words: int | None = None) -> None:
        """An instance dies. `forget`: its last words to peers are lost. Of what it had told the serving scheduler
        `last_words` are read (None = all, at once), some of them before that knows of the death and the rest never."""
        if last_words is None:
            while self.channels.get((name, SERVING)):
                self._deliver(name, SERVING)
        else:
            words = self.channels.get((name, SERVING), deque())
            while len(words) > last_words:
                words.pop()
        for key in list(self.channels):
            if key[1] == name or (key[0] == name and key[1] != SERVING and forget):
                del self.channels[key]
        del self.schedulers[name], self.engines[name]
        self.dying.append(name)
        if last_words is None:
            self.advance("lost", name, "")

    def advance_some(self, events: int) -> None:
        """Random things of `pending` happen."""
        for _ in range(events):
            if pending := self.pending():
                self.advance(*self.random.choice(pending))

    def drain(self) -> None:
        """Let everything end in random order, then see that all is answered and nothing is left behind."""
        idle = 0
        while pending := self.pending():
            self.advance(*self.random.choice(pending))
            idle = 0 if any(each[0] in ("step", "encode") for each in pending) else idle + 1
            assert idle < 2000, "messages go round and nothing is computed"
        for answer in self.serving.answers.values():
            assert answer.over, f"{answer.request_id} at {answer.owner} was forgotten"
            assert answer.cancelled or answer.finish == "error" or answer.made == answer.right
        for name, scheduler in self.schedulers.items():
            self.check(name)
            status = scheduler.status()
            assert not self.engines[name].sequences and not scheduler._state.sequences
            assert status.free_blocks == status.total_blocks, f"blocks leaked at {name}"
            assert not any(scheduler._state.pool._uses.values()), f"images are held at {name}"
            assert not scheduler._state.wanted and not scheduler._moves.arriving and not status.encoding
            assert scheduler._state.pool.used_bytes <= self.limits.pool_bytes

    # --- messages and actions

    def post(self, source: str, to: str, message: Payload | Tell) -> None:
        if to == SERVING or to in self.schedulers:
            self.channels.setdefault((source, to), deque()).append(message)

    def _deliver(self, source: str, to: str) -> None:
        message = self.channels[source, to].popleft()
        if not isinstance(message, Payload):
            self.serving.told(source, message)
            return
        if isinstance(message.event, EmbeddingsArrived):
            self.engines[to].embeddings[message.event.content_hash] = message.embedding
        self._event(to, message)

    def _event(self, name: str, message: Payload) -> None:
        self.now_ns += 1
        if isinstance(message.event, RequestQueued):
            assert self.engines[name].has_memory, "a request is sent to one that sleeps"
        if isinstance(message.event, EncodeAsked) and message.pixels:
            self.engines[name].pictures.add(message.event.content_hash)
        if isinstance(message.event, RolesSet | WakeAsked):
            self.delivered[name] = message.event.roles
        for action in self.schedulers[name].handle(self.now_ns, message.event):
            self.seen[type(action).__name__] += 1
            self._act(name, action, message)
        if isinstance(message.event, EncodeAsked) and not self.schedulers[name].will_encode(message.event.content_hash):
            self.engines[name].pictures.discard(message.event.content_hash)
        self.check(name)

    def _act(self, name: str, action: InstanceAction, message: Payload) -> None:
        engine = self.engines[name]
        match action:
            case RunStep():
                self._check_roles(name, action)
                for chunk in action.chunks:
                    engine.sequences[chunk.request_id].drew = False
                engine.start(action)
            case AddSequence(request):
                assert request.request_id not in engine.sequences
                engine.sequences[request.request_id] = Known(request, [*request.prompt, *request.made])
            case DropSequence(request_id):
                del engine.sequences[request_id]
            case EncodeImage(content_hash):
                assert not engine.encoding, "two images are encoded at once"
                engine.encoding = content_hash
            case DropEmbeddings(hashes):
                for content_hash in hashes:
                    del engine.embeddings[content_hash]
            case ImportRound():
                engine.put(action, message)
            case FreeMemory():
                engine.free_memory()
            case TakeMemory():
                engine.waking = True
            case _:
                self._tell(name, action)

    def _tell(self, name: str, action: InstanceAction) -> None:
        engine = self.engines[name]
        match action:
            case SendEmbeddings(content_hash, to):
                event = EmbeddingsArrived(content_hash, IMAGE_BYTES)
                self.post(name, to, Payload(event, embedding=engine.embeddings[content_hash]))
            case SendEncodeFailure(content_hash, to, error):
                self.post(name, to, Payload(EncodeFailed(content_hash, error)))
            case OfferMove(request, to, tokens):
                self.post(name, to, Payload(MoveOffered(request, name, tokens)))
            case AcceptMove(request_id, to, cached_tokens):
                self.post(name, to, Payload(MoveAccepted(request_id, name, cached_tokens)))
            case RefuseMove(request_id, to, reason):
                self.post(name, to, Payload(MoveRefused(request_id, name, reason)))
            case SendRound(request_id, to, first, until, blocks, made, final):
                kv = tuple(engine.read(blocks, first, until))
                self.post(name, to, Payload(RoundArrived(request_id, name, first, until, made, final), kv))
            case CancelMove(request_id, to):
                self.post(name, to, Payload(MoveCancelled(request_id, name)))
            case ConfirmRound(request_id, to, until):
                self.post(name, to, Payload(RoundTaken(request_id, name, until)))
            case ConfirmMove(request_id, to):
                self.post(name, to, Payload(MoveTaken(request_id, name)))
            case (
                RunStep()
                | AddSequence()
                | DropSequence()
                | EncodeImage()
                | DropEmbeddings()
                | ImportRound()
                | FreeMemory()
                | TakeMemory()
            ):
                raise AssertionError("for the engine")
            case _:
                self.post(name, SERVING, action)

    # --- what must hold

    def _check_roles(self, name: str, step: RunStep) -> None:
        """Prompts begin only where prefill is allowed, and output is drawn once more only where decode is."""
        roles = self.delivered[name]
        for chunk in step.chunks:
            known = self.engines[name].sequences[chunk.request_id]
            begins = not known.table and chunk.first < len(known.tokens) - 1
            assert Role.PREFILL in roles or not begins, "a prompt was begun without the role"
            again = chunk.fresh and Role.PREFILL in roles  # after a preemption, all but the last in the prefix cache
            decodes = known.drew and chunk.first == len(known.tokens) - 1 and not again
            assert Role.DECODE in roles or not decodes, "a sequence was decoded without the role"

    def check(self, name: str) -> None:
        """References, tables and images add up, counted from outside."""
        scheduler, engine = self.schedulers[name], self.engines[name]
        state = scheduler._state
        kv, block = state.kv, self.limits.block_tokens
        assert set(engine.sequences) == set(state.sequences), "the engine knows other sequences"
        assert engine.has_memory is scheduler._sleep.has_memory
        assert engine.has_memory or not (state.roles or kv._block_of), "asleep and ready for something"
        assert set(engine.embeddings) == set(state.pool._size), "the engine has other embeddings"
        holders: Counter[int] = Counter(state.parked)
        uses: Counter[str] = Counter()
        for key, sequence in state.sequences.items():
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            holders.update(sequence.blocks)
            uses.update(sequence.using)
            known = engine.sequences[key]
            assert known.tokens[: len(sequence.tokens)] == sequence.tokens, "the engine knows other tokens"
            if not sequence.fresh:
                assert known.table == sequence.blocks[: sequence.told_blocks]
            assert (sequence.phase is Phase.WAITING) == (not sequence.blocks)
            assert sequence.computed < len(sequence.tokens)
            assert (sequence.phase is Phase.RUNNING) == (key in state.running)
            if sequence.phase is Phase.RUNNING:
                for image in sequence.images_after(sequence.computed):
                    waits = key in state.wanted.get(image.content_hash, {})
                    assert waits != (image.content_hash in sequence.using), "an image is neither held nor waited for"
            for place in range(sequence.computed // block):  # what is shared has one content
                assert None not in engine.arena[sequence.blocks[place]]
        assert [holders[each] for each in range(kv.total)] == kv._references
        for writer, written in engine.writes():
            others = [key for key, each in state.sequences.items() if written in each.blocks and key != writer]
            assert not others and holders[written] == 1, "a block is written that another sequence has"
        idle = set(kv._idle)
        assert len(kv._free) + len(idle) + len(holders) == kv.total and not idle & set(kv._free)
        assert all(kv._key_of[each] is None for each in kv._free)
        assert {key: each for each, key in enumerate(kv._key_of) if key is not None} == kv._block_of
        assert {key: count for key, count in state.pool._uses.items() if count} == dict(uses)
        assert state.pool.used_bytes == IMAGE_BYTES * len(engine.embeddings)
        assert sorted(state.queue, key=lambda each: each.order()) == state.queue
        assert {id(each) for each in state.queue} == {
            id(each) for each in state.sequences.values() if each.phase is Phase.WAITING
        }
