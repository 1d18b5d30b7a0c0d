"""Messages between processes: the core's dataclasses by msgspec, never by pickle. A message is [kind, body, payload…]."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator

from tierline.core.instance_actions import Tell
from tierline.core.instance_events import InstanceEvent
from tierline.core.request import Role, TokenLogprob

DOMAIN = "tierline"


@dataclass(frozen=True, slots=True)
class Hello:
    """An instance is ready and listens at `endpoint`: what its arena and its weights take, and how long it took."""

    name: str
    endpoint: str
    pid: int
    roles: Role
    blocks: int
    block_tokens: int
    weights_bytes: int
    start_ns: int


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """An instance can be reached at `endpoint`."""

    name: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process."""


@dataclass(frozen=True, slots=True)
class Tells:
    """Words of an instance, in order; each as (kind, body, log-probabilities)."""

    name: str
    said: tuple[tuple[str, msgspec.Raw, tuple[TokenLogprob, ...]], ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """A CURVE key pair that all processes of one server share: what they send over TCP is encrypted, and nobody without the
    pair gets in."""

    secret: str
    public: str

    @classmethod
    def make(cls) -> Keys:
        public, secret = zmq.curve_keypair()
        return cls(secret.decode(), public.decode())

    def lock(self, socket: zmq.Socket[bytes], *, server: bool = False) -> None:
        """Before the socket is bound (`server`) or connected."""
        socket.curve_secretkey, socket.curve_publickey = self.secret.encode(), self.public.encode()
        if server:
            socket.curve_server = True
            socket.zap_domain = DOMAIN.encode()  # with a domain nobody gets in where nobody judges the keys
        else:
            socket.curve_serverkey = self.public.encode()


class _OnlyOurs:
    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        del domain
        return key == self._public


def admit_only(context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> ThreadAuthenticator:
    """From now on sockets of `context` that are locked as servers take connections with these keys alone. To be stopped
    before the context is."""
    guard = ThreadAuthenticator(context)
    guard.start()
    guard.configure_curve_callback(DOMAIN, _OnlyOurs(keys.public.encode()))
    return guard


def _members(union: Any) -> Mapping[str, type]:
    return {member.__name__: member for member in typing.get_args(union) if not isinstance(member, types.NoneType)}


KINDS: Mapping[str, type] = {
    **_members(InstanceEvent),
    **_members(Tell),
    **{kind.__name__: kind for kind in (Hello, PeerJoined, Stop, Tells)},
}
_encoder = msgspec.msgpack.Encoder()
_decoders: Mapping[str, msgspec.msgpack.Decoder[Any]] = {
    name: msgspec.msgpack.Decoder(kind) for name, kind in KINDS.items()
}


def encode(message: object) -> list[bytes]:
    """The two frames of a message."""
    return [type(message).__name__.encode(), _encoder.encode(message)]


def decode(frames: Sequence[bytes | memoryview]) -> Any:
    """The message of two frames. Raises `ValueError` for what is no message of ours."""
    name = bytes(frames[0]).decode("ascii", "replace")
    decoder = _decoders.get(name)
    if decoder is None:
        raise ValueError(f"a message of unknown kind '{name}'")
    return decoder.decode(frames[1])


class Teller:
    """What the instance `name` tells, gathered and sent to `server` as one message."""

    def __init__(self, name: str, server: zmq.Socket[bytes]) -> None:
        self._name = name
        self._server = server
        self._said: list[tuple[str, msgspec.Raw, tuple[TokenLogprob, ...]]] = []

    def tell(self, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._said.append((type(message).__name__, msgspec.Raw(_encoder.encode(message)), logprobs))

    def flush(self) -> None:
        """Send what was told since the last time."""
        if self._said:
            said, self._said = tuple(self._said), []
            self._server.send_multipart(encode(Tells(self._name, said)))


def unpack_tells(tells: Tells) -> list[tuple[Tell, tuple[TokenLogprob, ...]]]:
    return [(_decoders[kind].decode(body), logprobs) for kind, body, logprobs in tells.said]
