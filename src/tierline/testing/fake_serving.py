"""A made-up serving scheduler for tests of the instance scheduler, and what the clients of its requests see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import structs

from tierline.core.instance_actions import (
    Tell,
    TellAwake,
    TellEmbeddings,
    TellImagesNeeded,
    TellMoved,
    TellMoveFailed,
    TellPrefilled,
    TellReturned,
    TellTokens,
)
from tierline.core.instance_events import (
    EncodeAsked,
    InstanceEvent,
    MoveAsked,
    PeerLost,
    RequestCancelled,
    RequestQueued,
    RolesSet,
    SleepAsked,
    WakeAsked,
)
from tierline.core.request import ALL_ROLES, FinishReason, Request, Role
from tierline.testing.fake_engine import Model, Payload

if TYPE_CHECKING:
    from tierline.testing.instances import FakeCluster

SERVING = ""


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
        self.resting: dict[str, bool] = {}  # instances that were put to sleep -> whether they were woken since
        self.broken: set[str] = set()  # images that an encoder could not encode

    def joined(self, name: str, roles: Role) -> None:
        self.roles[name] = roles

    def waiting(self) -> list[str]:
        return []

    def resubmit(self, request_id: str) -> None:
        raise AssertionError("nobody was asked for pixels")

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
        request = structs.replace(answer.base, request_id=answer.request_id, made=answer.made)
        self._send(answer.owner, RequestQueued(request, hashes))

    def cancel(self, answer: Answer) -> None:
        answer.cancelled = True
        self._send(answer.owner, RequestCancelled(answer.request_id))

    def move(self, answer: Answer, to: str) -> None:
        self._send(answer.owner, MoveAsked(answer.request_id, to))

    def set_roles(self, name: str, roles: Role) -> None:
        self.roles[name] = roles
        self._send(name, RolesSet(roles))

    @property
    def awake(self) -> list[str]:
        return sorted(set(self.roles) - set(self.resting))

    def sleep(self, name: str) -> None:
        self.set_roles(name, Role(0))
        self.resting[name] = False
        self._send(name, SleepAsked())

    def wake(self, name: str, roles: Role) -> None:
        self.resting[name] = True
        self._send(name, WakeAsked(roles))

    def lost(self, name: str) -> None:
        """An instance is gone: what it had is sent to others, roles that only it had are given to somebody."""
        del self.roles[name]
        self.resting.pop(name, None)
        for role in Role:
            if not self.pick(role):
                other = self.cluster.random.choice(self.awake)
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
        if isinstance(tell, TellAwake):
            del self.resting[name]
            self.roles[name] = tell.roles
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
            self.cluster.post(SERVING, name, Payload(event, pixels=isinstance(event, EncodeAsked)))
