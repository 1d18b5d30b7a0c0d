"""The sequences of an instance, and who of them holds which blocks and images. The only place where these are given and
taken; what the engine has to know of it is appended to `out`."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from operator import attrgetter

from tierline.core.instance_actions import AddSequence, DropEmbeddings, DropSequence, InstanceAction, TellEmbeddings
from tierline.core.request import ALL_ROLES, Request, Role
from tierline.schedulers.embedding_pool import EmbeddingPool
from tierline.schedulers.kv_blocks import BlockKeys, KvBlocks
from tierline.schedulers.sequence import HASHED_KEYS, Phase, Sequence

seat_of = attrgetter("seat")


@dataclass(frozen=True, slots=True)
class InstanceLimits:
    """`blocks` of `block_tokens` positions; at most `token_budget` positions and `sequence_limit` sequences an iteration;
    `pool_bytes` of image embeddings; a sequence has `context_tokens` at most and ends at one of `end_tokens`."""

    blocks: int
    block_tokens: int = 16
    token_budget: int = 2048
    sequence_limit: int = 256
    pool_bytes: int = 256 * 1024 * 1024
    context_tokens: int = 2048
    end_tokens: frozenset[int] = frozenset()
    prefix_caching: bool = True

    @property
    def longest(self) -> int:
        """Tokens of a sequence at most."""
        return min(self.context_tokens, self.blocks * self.block_tokens)


@dataclass(slots=True)
class InstanceState:
    """`running` keeps the order of admission, `queue` that of `Sequence.order`. A sequence holds blocks unless WAITING.
    `apart` are those of `running` that are not in lockstep."""

    limits: InstanceLimits
    roles: Role = ALL_ROLES
    block_keys: BlockKeys = HASHED_KEYS
    kv: KvBlocks = field(init=False)
    pool: EmbeddingPool = field(init=False)
    sequences: dict[str, Sequence] = field(default_factory=dict)
    running: dict[str, Sequence] = field(default_factory=dict)
    apart: dict[str, Sequence] = field(default_factory=dict)
    queue: list[Sequence] = field(default_factory=list)
    wanted: dict[str, dict[str, Sequence]] = field(default_factory=dict)  # image without embeddings -> who waits for it
    parked: list[int] = field(default_factory=list)  # blocks of sequences dropped in the iteration that writes them
    out: list[InstanceAction] = field(default_factory=list)
    may_prefill: bool = field(init=False)  # as `roles` say
    may_decode: bool = field(init=False)
    queued_with_images: int = 0
    now_ns: int = 0
    seats: int = 0  # admissions so far
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0

    def __post_init__(self) -> None:
        limits = self.limits
        self.kv = KvBlocks(limits.blocks, limits.block_tokens, caching=limits.prefix_caching)
        self.pool = EmbeddingPool(limits.pool_bytes)
        self.set_roles(self.roles)

    def set_roles(self, roles: Role) -> None:
        self.roles = roles
        self.may_prefill, self.may_decode = Role.PREFILL in roles, Role.DECODE in roles

    def add(self, request: Request, phase: Phase) -> Sequence:
        sequence = Sequence(request, phase, self.block_keys)
        self.sequences[sequence.request_id] = sequence
        self.out.append(AddSequence(request))
        return sequence

    def enqueue(self, sequence: Sequence) -> None:
        sequence.phase = Phase.WAITING
        bisect.insort(self.queue, sequence, key=Sequence.order)
        self.queued_with_images += bool(sequence.request.images)

    def unqueue(self, sequence: Sequence) -> None:
        at = bisect.bisect_left(self.queue, sequence.order(), key=Sequence.order)
        assert self.queue[at] is sequence
        del self.queue[at]
        self.queued_with_images -= bool(sequence.request.images)

    def prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of the sequence already. Its last position is always computed anew, since a
        token is to be drawn there."""
        usable = (len(sequence.tokens) - 1) // self.limits.block_tokens
        return self.kv.match(sequence.keys_until(usable, self.limits.block_tokens))

    def admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence all blocks that its tokens need, and make it run; False when there are too few."""
        found = self.prefix(sequence)
        self.kv.retain(found)
        rest = self.kv.needed(len(sequence.tokens)) - len(found)
        taken = self.kv.take(rest)
        if len(taken) < rest:
            self.kv.release(found)
            return False
        self.unqueue(sequence)
        self.place(sequence, found, taken)
        self.prefix_queries += len(sequence.tokens)
        self.prefix_hits += sequence.computed
        self.run(sequence)
        return True

    def place(self, sequence: Sequence, found: list[int], taken: list[int]) -> None:
        """The sequence holds `found` (computed already) and `taken` from now on."""
        sequence.blocks = [*found, *taken]
        sequence.computed = len(found) * self.limits.block_tokens
        sequence.registered, sequence.told_blocks, sequence.fresh = len(found), 0, True
        sequence.cached_tokens = min(sequence.computed, len(sequence.request.prompt))
        self.free_passed_images(sequence)

    def run(self, sequence: Sequence) -> None:
        sequence.phase = Phase.RUNNING
        if sequence.request_id not in self.running:
            self.seats += 1
            sequence.seat = self.seats
        self.running[sequence.request_id] = sequence
        if sequence.locked < 0:
            self.apart[sequence.request_id] = sequence

    def stop(self, sequence: Sequence) -> None:
        """It is in no further iteration."""
        self.running.pop(sequence.request_id, None)
        self.apart.pop(sequence.request_id, None)

    def one_by_one(self) -> list[Sequence]:
        """Those in `apart`, in order of admission."""
        return sorted(self.apart.values(), key=seat_of) if self.apart else []

    def vacate(self, sequence: Sequence) -> None:
        """Take the sequence off its blocks and out of whatever it is in; it stays known."""
        if sequence.phase is Phase.WAITING:
            self.unqueue(sequence)
        self.stop(sequence)
        if sequence.in_step:
            self.parked += sequence.blocks
        else:
            self.kv.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.registered = sequence.told_blocks = sequence.in_step = 0
        sequence.fresh = True

    def drop(self, sequence: Sequence) -> None:
        """The sequence is no longer here."""
        self.vacate(sequence)
        for content_hash in sequence.using:
            self._given_up(self.pool.done(content_hash))
        for image in sequence.request.images:
            self._no_longer_wants(sequence, image.content_hash)
        del self.sequences[sequence.request_id]
        self.out.append(DropSequence(sequence.request_id))

    def iteration_ended(self) -> None:
        """Nothing is written any more."""
        self.kv.release(self.parked)
        self.parked = []

    def forget_all(self) -> None:
        """Nothing that was cached is there any more. No sequence is."""
        assert not self.sequences and not self.parked
        self.kv.forget_all()
        self._given_up(self.pool.forget_all())

    def preempt(self, sequence: Sequence) -> None:
        """Take all blocks; the sequence waits and is computed again, output tokens included."""
        self.preemptions += 1
        self.vacate(sequence)
        self.enqueue(sequence)

    def want_images(self, sequence: Sequence) -> list[str]:
        """Hold the images that the sequence needs and wait for those without embeddings; returns those of the latter that
        it did not wait for before."""
        if not sequence.request.images:
            return []
        start = sequence.computed or len(self.prefix(sequence)) * self.limits.block_tokens
        missing: list[str] = []
        for content_hash in dict.fromkeys(image.content_hash for image in sequence.images_after(start)):
            if content_hash in sequence.using:
                continue
            if content_hash in self.pool:
                self.pool.use(content_hash)
                sequence.using.add(content_hash)
            elif sequence.request_id not in (waiters := self.wanted.setdefault(content_hash, {})):
                waiters[sequence.request_id] = sequence
                missing.append(content_hash)
        return missing

    def image_ready(self, content_hash: str, size_bytes: int) -> None:
        """Embeddings are in the pool now: whoever waits for them holds them."""
        waiters = self.wanted.pop(content_hash, {})
        is_new = content_hash not in self.pool
        gone = self.pool.put(content_hash, size_bytes, uses=len(waiters))
        for sequence in waiters.values():
            sequence.using.add(content_hash)
        if is_new:
            self.out.append(TellEmbeddings((content_hash,), ()))
        self._given_up(gone)

    def free_passed_images(self, sequence: Sequence) -> None:
        """Let go of images that the sequence has computed past, and wait for them no more."""
        if not sequence.request.images:
            return
        ahead = {image.content_hash for image in sequence.images_after(sequence.computed)}
        for content_hash in dict.fromkeys(image.content_hash for image in sequence.request.images):
            if content_hash in ahead:
                continue
            self._no_longer_wants(sequence, content_hash)
            if content_hash in sequence.using:
                sequence.using.discard(content_hash)
                self._given_up(self.pool.done(content_hash))

    def grow(self, sequence: Sequence, positions: int) -> bool:
        """See that the sequence has blocks for its first `positions`; False when there are too few."""
        more = self.kv.needed(positions) - len(sequence.blocks)
        if more > 0:
            taken = self.kv.take(more)
            if not taken:
                return False
            sequence.blocks += taken
        return True

    def register(self, sequence: Sequence) -> None:
        """Full blocks can be found by others from now on."""
        full = sequence.computed // self.limits.block_tokens
        if full > sequence.registered:
            keys = sequence.keys_until(full, self.limits.block_tokens)
            self.kv.register_all(sequence.blocks[sequence.registered : full], keys[sequence.registered :])
            sequence.registered = full

    def _no_longer_wants(self, sequence: Sequence, content_hash: str) -> None:
        waiters = self.wanted.get(content_hash, {})
        waiters.pop(sequence.request_id, None)
        if not waiters:
            self.wanted.pop(content_hash, None)

    def _given_up(self, hashes: tuple[str, ...]) -> None:
        if hashes:
            self.out.append(DropEmbeddings(hashes))
            self.out.append(TellEmbeddings((), hashes))
