"""Nobody without the key gets in, not even who knows its public half."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

zmq = pytest.importorskip("zmq")
pytest.importorskip("torch")

from tierline.engine import wire  # noqa: E402


def strange(keys: wire.Keys, socket: Any) -> None:
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey = keys.public.encode()


@pytest.mark.skipif(not zmq.has("curve"), reason="this ZeroMQ was built without CURVE")
@pytest.mark.parametrize(
    ("lock", "gets_in"),
    [
        (lambda keys, socket: None, False),
        (strange, False),
        (lambda keys, socket: wire.Keys.make().lock(socket), False),
        (lambda keys, socket: keys.lock(socket), True),
    ],
)
def test_only_who_has_the_pair_gets_in(lock: Callable[[wire.Keys, Any], None], gets_in: bool) -> None:
    keys, context, others = wire.Keys.make(), zmq.Context(), zmq.Context()
    guard = wire.admit_only(context, keys)
    inbox, socket = context.socket(zmq.PULL), others.socket(zmq.PUSH)
    try:
        keys.lock(inbox, server=True)
        inbox.bind("tcp://127.0.0.1:*")
        lock(keys, socket)
        socket.set(zmq.IMMEDIATE, 1)  # nothing is sent before the other side has let us in
        socket.set(zmq.SNDTIMEO, 20_000 if gets_in else 1000)
        socket.connect(inbox.get_string(zmq.LAST_ENDPOINT).rstrip("\0"))
        if gets_in:
            socket.send_multipart(wire.encode(wire.Stop()))
            assert wire.decode(inbox.recv_multipart()) == wire.Stop()
        else:
            with pytest.raises(zmq.Again):
                socket.send_multipart(wire.encode(wire.Stop()))
            assert not inbox.poll(0)
    finally:
        others.destroy(linger=0)
        guard.stop()
        context.destroy(linger=0)
