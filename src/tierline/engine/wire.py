"""Messages between processes: the core's dataclasses by msgspec, never by pickle. A message is [kind, body, payload…]."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tierline.core.instance_actions import Tell
from tierline.core.instance_events import InstanceEvent
from tierline.core.request import Role, TokenLogprob


@dataclass(frozen=True, slots=True)
class Hello:
    """An instance is ready: what its arena and its weights take, and how long it took to get ready."""

    name: str
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


def _members(union: Any) -> Mapping[str, type]:
    return {member.__name__: member for member in typing.get_args(union) if not isinstance(member, types.NoneType)}


KINDS: Mapping[str, type] = {
    **_members(InstanceEvent),
    **_members(Tell),
    **{kind.__name__: kind for kind in (Hello, PeerJoined, Stop, Tells)},
}
_encoder = msgspec.msgpack.Encoder()
_decoders: Mapping[str, msgspec.msgpack.Decoder[Any]] = {name: msgspec.msgpack.Decoder(kind) for name, kind in KINDS.items()}


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


def pack_tell(message: Tell, logprobs: tuple[TokenLogprob, ...]) -> tuple[str, msgspec.Raw, tuple[TokenLogprob, ...]]:
    return type(message).__name__, msgspec.Raw(_encoder.encode(message)), logprobs


def unpack_tells(tells: Tells) -> list[tuple[Tell, tuple[TokenLogprob, ...]]]:
    return [(_decoders[kind].decode(body), logprobs) for kind, body, logprobs in tells.said]
