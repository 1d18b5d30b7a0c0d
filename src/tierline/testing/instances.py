"""A fake serving cluster for the instance scheduler: engines, peers and a serving scheduler that do what they are told.

The KV of a position is a number made of the KV of all positions before it, its token and what its image looks like; the next
token is drawn from the KV of all positions, read through the block table as the engine knows it. So a wrong block, a stale
prefix, a missed image or a position computed too early gives another token than `Model.answer`, which knows no blocks.
Whatever may take its time (steps, encodes, messages: in order between two parties only) waits until somebody says `advance`.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tierline.core.batch_view import BatchPolicy
from tierline.core.instance_actions import (
    AcceptMove,
    AddSequence,
    CancelMove,
    Chunk,
    ConfirmMove,
    ConfirmRound,
    DropEmbeddings,
    DropSequence,
    EncodeImage,
    ImportRound,
    InstanceAction,
    OfferMove,
    RefuseMove,
    RunStep,
    SendEmbeddings,
    SendEncodeFailure,
    SendRound,
    Tell,
    TellEmbeddings,
    TellImagesNeeded,
    TellMoved,
    TellMoveFailed,
    TellPrefilled,
    TellReturned,
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
from tierline.core.request import ALL_ROLES, FinishReason, Request, Role, Sampling
from tierline.policies.batching import make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_images import EVICTED
from tierline.schedulers.instance_state import InstanceLimits
from tierline.schedulers.sequence import Phase

VOCABULARY = 1009
IMAGE_BYTES = 10
SERVING = ""


def embedding(content_hash: str) -> int:
    """What an image looks like, as one number."""
    return zlib.crc32(content_hash.encode()) + 1


class Model:
    """Numbers in place of tensors. Hashes of integers are the same in every process."""

    @staticmethod
    def kv(before: Sequence[int], token: int, image: int) -> int:
        return hash((tuple(before), token, image))

    @staticmethod
    def draw(kv: Sequence[int], sampling: Sampling, number: int, end_tokens: frozenset[int]) -> int:
        """Output token `number` (from 0); no end before `min_tokens`."""
        token = hash((tuple(kv), sampling.seed, number)) % VOCABULARY
        ends = set(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else end_tokens)
        while number < sampling.min_tokens and token in ends:
            token = (token + 1) % VOCABULARY
        return token

    @classmethod
    def answer(cls, request: Request, limits: InstanceLimits) -> tuple[tuple[int, ...], FinishReason]:
        """The whole right answer, computed without blocks, caches or moves."""
        images = {at: i for i in request.images for at in range(i.start, i.end)}
        room = min(limits.context_tokens, limits.blocks * limits.block_tokens)
        tokens, kv, made = list(request.prompt), list[int](), list[int]()
        if len(tokens) + 1 > limits.blocks * limits.block_tokens:
            return (), "error"
        while True:
            for at in range(len(kv), len(tokens)):
                image = images.get(at)
                seen = embedding(image.content_hash) + at - image.start if image else 0
                kv.append(cls.kv(kv, tokens[at], seen))
            token = cls.draw(kv, request.sampling, len(made), limits.end_tokens)
            made.append(token)
            tokens.append(token)
            sampling = request.sampling
            ends = token in sampling.stop_token_ids or (not sampling.ignore_eos and token in limits.end_tokens)
            if ends and len(made) >= sampling.min_tokens:
                return tuple(made), "stop"
            if len(made) >= sampling.max_tokens or len(tokens) >= room:
                return tuple(made), "length"


@dataclass(slots=True)
class Known:
    """A sequence as the engine knows it."""

    request: Request
    tokens: list[int]
    table: list[int] = field(default_factory=list)
    drew: bool = False  # its last chunk, here or at the peer it came from, drew a token


@dataclass(slots=True)
class Payload:
    """A message with what the engines put into it beside the event."""

    event: InstanceEvent
    kv: tuple[int, ...] = ()
    embedding: int = 0


class FakeEngine:
    """Carries out actions on an arena of numbers, and asserts whatever an engine relies on. A step reads and writes when it
    ends, so whoever gives its blocks or images away before is found out."""

    def __init__(self, limits: InstanceLimits, chunked: bool) -> None:
        self.limits = limits
        self.chunked = chunked
        self.arena: list[list[int | None]] = [[None] * limits.block_tokens for _ in range(limits.blocks)]
        self.sequences: dict[str, Known] = {}
        self.embeddings: dict[str, int] = {}
        self.step: RunStep | None = None
        self.encoding = ""
        self._at_start: dict[str, tuple[Known, dict[str, int]]] = {}

    def start(self, step: RunStep) -> None:
        assert self.step is None, "a step is under way already"
        names = [chunk.request_id for chunk in step.chunks]
        assert names and len(set(names)) == len(names) <= self.limits.sequence_limit
        used = sum(chunk.tokens for chunk in step.chunks)
        assert used <= self.limits.token_budget or (not self.chunked and len(names) == 1)
        for chunk in step.chunks:
            self._take(chunk)
        self.step = step

    def _take(self, chunk: Chunk) -> None:
        known = self.sequences[chunk.request_id]
        if chunk.fresh:
            known.table = []
        known.table += chunk.new_blocks
        until = chunk.first + chunk.tokens
        assert chunk.tokens > 0 and until <= len(known.tokens)
        assert chunk.samples == (until == len(known.tokens))
        assert len(known.table) * self.limits.block_tokens >= until, "a chunk has no blocks"
        for image in known.request.images:
            needed = image.start < until and image.end > chunk.first
            assert not needed or image.content_hash in self.embeddings, "a position was computed before its image"
        frozen = Known(known.request, list(known.tokens), list(known.table))
        self._at_start[chunk.request_id] = (frozen, dict(self.embeddings))

    def writes(self) -> list[tuple[str, int]]:
        """Blocks that the step under way writes, and for whom."""
        block, found = self.limits.block_tokens, []
        for chunk in self.step.chunks if self.step else ():
            table = self._at_start[chunk.request_id][0].table
            places = range(chunk.first // block, -(-(chunk.first + chunk.tokens) // block))
            found += [(chunk.request_id, table[place]) for place in places]
        return found

    def finish(self) -> StepEnded:
        step, self.step = self.step, None
        assert step is not None
        sampled = [(chunk.request_id, self._compute(chunk)) for chunk in step.chunks]
        return StepEnded(step.step, tuple((key, token) for key, token in sampled if token is not None))

    def _compute(self, chunk: Chunk) -> int | None:
        known, embeddings = self._at_start.pop(chunk.request_id)
        if chunk.request_id in self.sequences:
            embeddings = self.embeddings
        block, until = self.limits.block_tokens, chunk.first + chunk.tokens
        images = {at: image for image in known.request.images for at in range(image.start, image.end)}
        kv = self.read(known.table, 0, chunk.first)
        for at in range(chunk.first, until):
            image = images.get(at)
            seen = embeddings[image.content_hash] + at - image.start if image else 0
            kv.append(Model.kv(kv, known.tokens[at], seen))
            self.arena[known.table[at // block]][at % block] = kv[-1]
        if not chunk.samples:
            return None
        number = len(known.tokens) - len(known.request.prompt)
        token = Model.draw(kv, known.request.sampling, number, self.limits.end_tokens)
        if chunk.request_id in self.sequences:
            self.sequences[chunk.request_id].tokens.append(token)
            self.sequences[chunk.request_id].drew = True
        return token

    def read(self, table: Sequence[int], first: int, until: int) -> list[int]:
        """KV of the positions `first..until`; `table` begins with the block of `first`."""
        block = self.limits.block_tokens
        assert first % block == 0
        found = [self.arena[table[at // block]][at % block] for at in range(until - first)]
        kv = [each for each in found if each is not None]
        assert len(kv) == len(found), "KV is read that was never written"
        return kv

    def put(self, action: ImportRound, message: Payload) -> None:
        """A round's KV goes into the arena."""
        assert isinstance(message.event, RoundArrived)
        block, known = self.limits.block_tokens, self.sequences[action.request_id]
        assert len(message.kv) == action.until - action.first and action.first % block == 0
        for offset, value in enumerate(message.kv):
            self.arena[action.blocks[offset // block]][offset % block] = value
        known.tokens = [*known.request.prompt, *message.event.made]
        known.drew = message.event.final


@dataclass(slots=True)
class Answer:
    """One request as its client sees it: `base` is the attempt without what was made by others."""

    base: Request
    right: tuple[int, ...]
    right_finish: FinishReason
    attempt: int = 0
    owner: str = ""
    told: dict[int, int] = field(default_factory=dict)
    finish: FinishReason | None = None
    length: int = 0
    cancelled: bool = False
    moves: list[tuple[str, str]] = field(default_factory=list)  # told before the move that came first

    @property
    def request_id(self) -> str:
        return f"{self.base.request_id}.{self.attempt}"

    @property
    def made(self) -> tuple[int, ...]:
        """Tokens known without a gap."""
        tokens: list[int] = []
        while len(tokens) in self.told:
            tokens.append(self.told[len(tokens)])
        return tuple(tokens)

    @property
    def over(self) -> bool:
        return self.cancelled or (self.finish is not None and len(self.made) >= self.length)


class FakeServing:
    """The serving scheduler, as simple as can be: sends requests, moves and encodes to somebody who may do them."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.answers: dict[str, Answer] = {}
        self.roles: dict[str, Role] = {}
        self.asked: dict[tuple[str, str], str] = {}  # (image, for whom) -> who encodes it
        self.broken: set[str] = set()  # images that an encoder could not encode

    def pick(self, role: Role, but: str = "") -> str:
        able = [name for name, roles in self.roles.items() if role in roles and name != but]
        return self.cluster.random.choice(able) if able else ""

    def submit(self, request: Request, announce: bool = False) -> None:
        """`announce`: its images are asked for at once, and the request says that they are on their way."""
        right = Model.answer(request, self.cluster.limits)
        answer = self.answers[request.request_id] = Answer(request, *right)
        self._queue(answer, announce)

    def _queue(self, answer: Answer, announce: bool = False) -> None:
        answer.attempt += 1
        answer.owner = self.pick(Role.PREFILL)
        answer.moves.clear()
        hashes = tuple(dict.fromkeys(image.content_hash for image in answer.base.images)) if announce else ()
        for content_hash in hashes:
            self._encode(content_hash, answer.owner)
        request = replace(answer.base, request_id=answer.request_id, made=answer.made)
        self._send(answer.owner, RequestQueued(request, hashes))

    def cancel(self, answer: Answer) -> None:
        answer.cancelled = True
        self._send(answer.owner, RequestCancelled(answer.request_id))

    def move(self, answer: Answer, to: str) -> None:
        self._send(answer.owner, MoveAsked(answer.request_id, to))

    def set_roles(self, name: str, roles: Role) -> None:
        self.roles[name] = roles
        self._send(name, RolesSet(roles))

    def lost(self, name: str) -> None:
        """An instance is gone: what it had is sent to others, roles that only it had are given to somebody."""
        del self.roles[name]
        for role in Role:
            if not self.pick(role):
                other = self.cluster.random.choice(sorted(self.roles))
                self.set_roles(other, self.roles[other] | role)
        for other in self.roles:
            self._send(other, PeerLost(name))
        self.asked = {key: by for key, by in self.asked.items() if key[1] != name}
        for (content_hash, to), by in list(self.asked.items()):
            if by == name:
                self._encode(content_hash, to)
        for answer in self.answers.values():
            if answer.owner == name and not answer.over and answer.finish is None:
                for other in self.roles:
                    self._send(other, RequestCancelled(answer.request_id))
                self._queue(answer)

    def told(self, name: str, tell: Tell) -> None:
        if isinstance(tell, TellEmbeddings):
            for content_hash in tell.stored:
                self.asked.pop((content_hash, name), None)
        if not isinstance(
            tell, TellTokens | TellPrefilled | TellImagesNeeded | TellReturned | TellMoved | TellMoveFailed
        ):
            return
        answer = self.answers[tell.request_id.split(".")[0]]
        if tell.request_id != answer.request_id or answer.cancelled:
            if tell.request_id != answer.request_id and isinstance(tell, TellTokens):
                assert answer.right[tell.first : tell.first + len(tell.tokens)] == tell.tokens
            self._send(name, RequestCancelled(tell.request_id))
            return
        if answer.finish is not None and (not isinstance(tell, TellTokens) or tell.finish is not None):
            # Whoever took it over has finished it and died, and its source, told of the death alone, went on.
            assert answer.owner not in self.roles or not isinstance(tell, TellTokens), "an attempt was answered twice"
            self._send(name, RequestCancelled(tell.request_id))
            return
        match tell:
            case TellTokens():
                self._tokens(answer, tell)
            case TellMoved():
                answer.moves.append((tell.source, name))
                while following := [move for move in answer.moves if move[0] == answer.owner]:
                    answer.moves.remove(following[0])
                    answer.owner = following[0][1]
            case TellReturned():
                assert tell.made == answer.right[: len(tell.made)]
                answer.told.update(enumerate(tell.made))
                self._queue(answer)
            case TellImagesNeeded():
                for content_hash in tell.hashes:
                    self._encode(content_hash, name)
            case TellPrefilled() | TellMoveFailed():
                if Role.DECODE not in self.roles.get(name, ALL_ROLES):
                    self._send(name, MoveAsked(answer.request_id, self.pick(Role.DECODE, but=name)))

    def _tokens(self, answer: Answer, tell: TellTokens) -> None:
        answer.told.update(enumerate(tell.tokens, tell.first))
        right = answer.right[tell.first : tell.first + len(tell.tokens)]
        assert right == tell.tokens or (tell.finish == "error" and not tell.tokens), "wrong tokens"
        if tell.finish is None:
            return
        answer.finish, answer.length = tell.finish, tell.first + len(tell.tokens)
        if tell.finish == "error" and answer.right_finish != "error":
            assert "could not be encoded" in tell.reason, tell.reason
            assert self.broken & {image.content_hash for image in answer.base.images}
        else:
            assert (answer.finish, answer.length) == (answer.right_finish, len(answer.right))

    def _encode(self, content_hash: str, to: str) -> None:
        """Ask who was asked already, if it lives: asking twice does no harm there."""
        by = self.asked.get((content_hash, to), "")
        by = by if by in self.roles else self.pick(Role.ENCODE)
        self.asked[content_hash, to] = by
        self._send(by, EncodeAsked(content_hash, to if by != to else ""))

    def _send(self, name: str, event: InstanceEvent) -> None:
        if name in self.roles:
            self.cluster.post(SERVING, name, Payload(event))


class FakeCluster:
    """`InstanceScheduler`s with engines, and messages between them. Raises AssertionError the moment something is wrong."""

    def __init__(
        self,
        limits: InstanceLimits,
        roles: Sequence[Role],
        policies: Sequence[str | Callable[[], BatchPolicy]] = ("sarathi",),
        seed: int = 0,
    ) -> None:
        self.limits = limits
        self.random = random.Random(seed)
        self.now_ns = 0
        self.serving = FakeServing(self)
        self.schedulers: dict[str, InstanceScheduler] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.channels: dict[tuple[str, str], deque[Payload | Tell]] = {}
        self.delivered: dict[str, Role] = {}  # the roles that an instance has been told
        self.seen: Counter[str] = Counter()  # how often each kind of action was wanted
        for number, own in enumerate(roles):
            name, make = f"i{number}", policies[number % len(policies)]
            policy = make_batching(make) if isinstance(make, str) else make()
            self.schedulers[name] = InstanceScheduler(name, limits, policy, own)
            self.engines[name] = FakeEngine(limits, policy.chunked)
            self.serving.roles[name] = self.delivered[name] = own

    # --- what takes its time

    def pending(self) -> list[tuple[str, str, str]]:
        """All that could happen next: (what, where, from whom)."""
        found = [("message", to, source) for (source, to), queue in self.channels.items() if queue]
        found += [("step", name, "") for name, engine in self.engines.items() if engine.step]
        return found + [("encode", name, "") for name, engine in self.engines.items() if engine.encoding]

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
                if error and error != EVICTED:
                    self.serving.broken.add(content_hash)
                if not error:
                    engine.embeddings[content_hash] = embedding(content_hash)
                self._event(name, Payload(EncodeEnded(content_hash, 0 if error else IMAGE_BYTES, error)))

    def kill(self, name: str, forget: bool) -> None:
        """An instance dies. What it had told the serving scheduler is read to the end; `forget`: its last words to peers
        are lost."""
        while self.channels.get((name, SERVING)):
            self._deliver(name, SERVING)
        for key in list(self.channels):
            if key[1] == name or (key[0] == name and forget):
                del self.channels[key]
        del self.schedulers[name], self.engines[name]
        self.serving.lost(name)

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
            idle = 0 if any(each[0] != "message" for each in pending) else idle + 1
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
        if isinstance(message.event, RolesSet):
            self.delivered[name] = message.event.roles
        for action in self.schedulers[name].handle(self.now_ns, message.event):
            self.seen[type(action).__name__] += 1
            self._act(name, action, message)
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
            case RunStep() | AddSequence() | DropSequence() | EncodeImage() | DropEmbeddings() | ImportRound():
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
