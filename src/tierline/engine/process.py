"""The process of one instance, forked by `engine/forkserver.py`.

One thread takes messages, runs iterations and sends what they gave; the encoder lane has a thread of its own. The process
ends when its parent does.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path

import msgspec
import torch
import zmq

from tierline.core.errors import TierlineError
from tierline.core.instance_actions import Tell, TellStatus
from tierline.core.instance_events import (
    EncodeAsked,
    InstanceEvent,
    MoveAccepted,
    MoveCancelled,
    MoveOffered,
    MoveRefused,
    MoveTaken,
    PeerLost,
    RoundArrived,
    RoundTaken,
)
from tierline.core.request import Picture, TokenLogprob
from tierline.engine import wire
from tierline.engine.build import Built, build
from tierline.engine.settings import InstanceSettings
from tierline.engine.transfer import Carrier, InMessage, SharedMemory

IDLE_MS = 500
STATUS_NS = 100_000_000
TIMES_NS = 1_000_000_000


class Wires:
    """The sockets of an instance. `frames` of a message: kind, body, then a payload's.

    A peer's word may come before the server's word of where that peer listens: what is sent to it waits so long. Names are
    never given twice, so a peer that was lost stays lost.
    """

    def __init__(self, settings: InstanceSettings) -> None:
        self._settings = settings
        self._context = zmq.Context()
        self._keys = wire.Keys(settings.curve_secret, settings.curve_public) if settings.curve_secret else None
        self._guard = wire.admit_only(self._context, self._keys) if self._keys else None
        self._carrier: Carrier = InMessage()
        if settings.transfer == "shm":
            self._carrier = SharedMemory(Path(settings.shm_dir), settings.name)
        self._inbox = self._socket(zmq.PULL, server=True)
        self._inbox.bind(settings.endpoint)
        self.endpoint = self._inbox.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._server = self._socket(zmq.PUSH)
        self._server.connect(settings.server)
        self._teller = wire.Teller(settings.name, self._server)
        self._peers: dict[str, zmq.Socket[bytes]] = {}
        self._early: defaultdict[str, list[list[bytes]]] = defaultdict(list)  # for peers whose address is not known yet
        self._lost: set[str] = set()
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_out.bind("inproc://wake")
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_in.connect("inproc://wake")
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._poller.register(self._wake_in, zmq.POLLIN)

    def _socket(self, kind: int, *, server: bool = False) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        # Nothing is ever dropped for a full queue: what is under way is bounded by the scheduler's own limits.
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.LINGER, 1000)
        if self._keys:
            self._keys.lock(socket, server=server)
        return socket

    # --- the instance's port

    def send(self, peer: str, event: InstanceEvent, payload: torch.Tensor | None) -> None:
        if peer in self._lost:
            return
        frames = wire.encode(event)
        if payload is not None:
            frames += self._carrier.pack(peer, payload)
        socket = self._peers.get(peer)
        if socket is None:
            self._early[peer].append(frames)
        else:
            socket.send_multipart(frames, copy=False)

    def tell(self, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._teller.tell(message, logprobs)

    # --- the loop's side

    def flush(self) -> None:
        """Send what was told since the last time, as one message."""
        self._teller.flush()

    def hello(self, message: wire.Hello) -> None:
        self._server.send_multipart(wire.encode(message))

    def wake(self) -> None:
        """From the encoder lane's thread, which alone uses this socket."""
        self._wake_out.send(b"")

    def receive(self, timeout_ms: int) -> list[list[bytes]]:
        """All messages that are there, after waiting for one at most so long."""
        found: list[list[bytes]] = []
        ready = dict(self._poller.poll(timeout_ms))
        if self._wake_in in ready:
            while self._wake_in.poll(0):
                self._wake_in.recv()
        while self._inbox.poll(0):
            found.append(self._inbox.recv_multipart())
        return found

    def unpack(self, frames: list[bytes]) -> torch.Tensor | None:
        return self._carrier.unpack(frames) if frames[0] == b"shm" else InMessage().unpack(frames)

    def connect(self, peer: wire.PeerJoined) -> None:
        if peer.name in self._peers or peer.name in self._lost or peer.name == self._settings.name:
            return
        socket = self._peers[peer.name] = self._socket(zmq.PUSH)
        socket.connect(peer.endpoint)
        for frames in self._early.pop(peer.name, ()):
            socket.send_multipart(frames, copy=False)

    def disconnect(self, peer: str) -> None:
        """The peer is gone, with all that was on its way there."""
        self._lost.add(peer)
        self._early.pop(peer, None)
        socket = self._peers.pop(peer, None)
        if socket is not None:
            socket.close(linger=0)
        self._carrier.forget(peer)

    def is_lost(self, peer: str) -> bool:
        return peer in self._lost

    def close(self) -> None:
        if self._guard is not None:
            self._guard.stop()
        self._context.destroy(linger=1000)


class Loop:
    """Messages in, iterations, words out."""

    def __init__(self, wires: Wires, built: Built, parent: int) -> None:
        self._wires = wires
        self._instance = built.instance
        self._scheduler = built.scheduler
        self._parent = parent
        self._status: TellStatus | None = None
        self._status_ns = 0
        self._times_ns = 0

    def run(self) -> None:
        while os.getppid() == self._parent:
            for frames in self._wires.receive(self._patience_ms()):
                if not self._take(frames):
                    return
            self._instance.collect()
            self._instance.step()
            self._tell_status()
            self._wires.flush()

    def _patience_ms(self) -> int:
        if self._instance.has_step:
            return 0
        longest = STATUS_NS // 1_000_000 if self._status != self._scheduler.status() else IDLE_MS
        wait_ns = self._instance.wait_ns()
        return longest if wait_ns is None else min(longest, -(-wait_ns // 1_000_000))

    def _take(self, frames: list[bytes]) -> bool:
        """Handle one message; False when it says to stop."""
        message = wire.decode(frames)
        match message:
            case wire.Stop():
                return False
            case wire.PeerJoined():
                self._wires.connect(message)
            case EncodeAsked() if len(frames) > 2:
                width, height = msgspec.msgpack.decode(frames[2], type=tuple[int, int])
                picture = Picture(message.content_hash, width, height, frames[3])
                self._instance.deliver(message, picture=picture)
            case _ if len(frames) > 2:
                payload = self._wires.unpack(frames[2:])
                if payload is not None and not self._wires.is_lost(_sender(message)):
                    self._instance.deliver(message, payload)
            case PeerLost():
                self._wires.disconnect(message.peer)
                self._instance.deliver(message)
            case _ if not self._wires.is_lost(_sender(message)):
                self._instance.deliver(message)
        return True

    def _tell_status(self) -> None:
        now = time.monotonic_ns()
        if now - self._status_ns >= STATUS_NS:
            status = self._scheduler.status()
            if status != self._status:
                self._wires.tell(status, ())
                self._status = status
            self._status_ns = now
        if now - self._times_ns >= TIMES_NS:
            self._instance.tell_times()
            self._times_ns = now


def _sender(message: InstanceEvent) -> str:
    """The peer that a move's message is from. Words of one that is lost can come after word of its loss; nobody would
    answer what they lead to."""
    match message:
        case MoveOffered() | RoundArrived() | MoveCancelled():
            return message.source
        case MoveAccepted() | MoveRefused() | RoundTaken() | MoveTaken():
            return message.peer
    return ""


def main(settings: InstanceSettings, parent: int) -> int:
    """Serve until told to stop, or until the process `parent` is gone; returns the exit code: 2 = it cannot be started as
    it was told to, and the last line says why."""
    began = time.monotonic_ns()
    wires = Wires(settings)
    try:
        built = build(settings, wires, wires.wake)
        built.instance.warm_up()
    except TierlineError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # whatever a library says of weights that it cannot read
        traceback.print_exc()
        said = (str(error).strip().splitlines() or ["no reason is given"])[0].rstrip(".")
        print(f"model '{settings.model}' cannot be loaded ({type(error).__name__}: {said}).", file=sys.stderr)
        return 2
    limits, ready = built.limits, time.monotonic_ns() - began
    wires.hello(
        wire.Hello(
            name=settings.name,
            endpoint=wires.endpoint,
            pid=os.getpid(),
            roles=settings.roles,
            blocks=limits.blocks,
            block_tokens=limits.block_tokens,
            weights_bytes=built.weights_bytes,
            start_ns=ready,
        )
    )
    try:
        Loop(wires, built, parent).run()
    finally:
        built.instance.close()
        wires.close()
    return 0
