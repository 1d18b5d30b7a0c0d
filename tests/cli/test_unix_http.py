"""The client's way to the daemon's socket: whatever happens at the other end, one clear error and no socket left open."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tierline.cli.client import connect
from tierline.core.errors import DaemonUnavailable


@contextmanager
def listening(state: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Somebody at the socket of `state` who takes one call and does `answer` with it."""
    path = state / "run" / "tierline.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                answer(line)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def open_sockets() -> int:
    return sum(os.path.islink(f"/proc/self/fd/{fd}") and "socket:" in os.readlink(f"/proc/self/fd/{fd}")
               for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))  # fmt: skip


def test_a_connection_that_fails_leaves_no_socket(tmp_path: Path) -> None:
    before = open_sockets()
    gc.disable()  # nobody else shall close it for us
    try:
        with connect(tmp_path) as client:
            with pytest.raises(DaemonUnavailable, match="No daemon answers"):
                client.health()
            (tmp_path / "run").mkdir()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                dead.bind(str(tmp_path / "run" / "tierline.sock"))  # its daemon was killed: nobody listens
            with pytest.raises(DaemonUnavailable, match="No daemon answers"):
                client.health()
        assert open_sockets() == before
    finally:
        gc.enable()


def test_a_daemon_that_leaves_in_the_middle_is_no_daemon(tmp_path: Path) -> None:
    with (
        listening(tmp_path, lambda line: line.recv(10)),
        connect(tmp_path) as client,
        pytest.raises(DaemonUnavailable, match="No daemon answers"),
    ):
        client.health()


def test_a_daemon_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    given_up = threading.Event()
    with listening(tmp_path, lambda line: given_up.wait(20)), connect(tmp_path, timeout_s=0.1) as client:
        with pytest.raises(DaemonUnavailable, match="did not answer in time"):
            client.health()
        given_up.set()


def test_an_answer_is_taken_as_it_is(tmp_path: Path) -> None:
    def answer(line: socket.socket) -> None:
        line.recv(65_536)
        line.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nup \r\n1\r\n1\r\n0\r\n\r\n")

    with listening(tmp_path, answer), connect(tmp_path) as client:
        assert client.metrics() == "up 1"
