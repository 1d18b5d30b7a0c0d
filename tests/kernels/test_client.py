"""Threads as clients, at the boundary of the preload library; the library itself is faked here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import tierline.kernels
from tierline.core.errors import InvalidInput, UnknownName
from tierline.kernels import OutsideTierline
from tierline.kernels import client as client_function

client_module = sys.modules["tierline.kernels.client"]


class Preloaded:
    """Notes the calls; `slot` and `bound` are what it answers."""

    def __init__(self, slot: int = 3, bound: int = 0) -> None:
        self.calls: list[tuple[object, ...]] = []
        self._slot, self._bound = slot, bound

    def tierline_client_begin(self, name: bytes, priority: int, memory_bytes: int) -> int:
        self.calls.append(("begin", name, priority, memory_bytes))
        return self._slot

    def tierline_client_end(self, number: int) -> int:
        self.calls.append(("end", number))
        return 0

    def tierline_bind_stream(self, handle: int, number: int) -> int:
        self.calls.append(("bind", handle, number))
        return self._bound


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Preloaded:
    made = Preloaded()
    monkeypatch.setattr(client_module, "_preloaded", lambda: made)
    return made


def test_outside_of_tierline_run_it_warns_and_does_nothing() -> None:
    with pytest.warns(OutsideTierline, match="was not started with `tierline run"), client_function("high") as stream:
        assert stream is None


def test_a_thread_is_a_client_until_the_end_also_after_an_error(library: Preloaded) -> None:
    with tierline.kernels.client(priority="high", name="serve", stream=0x70, memory_bytes=1 << 30):
        assert library.calls == [("begin", b"serve", 0, 1 << 30), ("bind", 0x70, 3)]
    assert library.calls[-1] == ("end", 3)
    with pytest.raises(ZeroDivisionError), tierline.kernels.client():
        raise ZeroDivisionError
    assert library.calls[-2:] == [("begin", library.calls[-2][1], 1, 0), ("end", 3)]


@pytest.mark.parametrize("stream", [SimpleNamespace(cuda_stream=0x70), SimpleNamespace(ptr=0x70)])
def test_streams_of_torch_and_cupy(library: Preloaded, stream: object) -> None:
    with client_function(stream=stream) as current:
        assert current is stream
    assert ("bind", 0x70, 3) in library.calls


def test_with_torch_it_takes_a_stream_of_its_own(library: Preloaded, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class Stream:
        cuda_stream = 0x99

        def __init__(self, priority: int = 0) -> None:
            made.append(priority)

        def wait_stream(self, other: object) -> None:
            made.append("waits")

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *_: object) -> None:
            made.append("left")

    cuda = SimpleNamespace(
        is_available=lambda: True, Stream=Stream, stream=lambda stream: stream, current_stream=lambda: Stream(5)
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    with client_function("high") as stream:
        assert isinstance(stream, Stream)
        assert ("bind", 0x99, 3) in library.calls
    assert made == [5, -1, "waits", "left", "waits"]


def test_what_is_no_client(library: Preloaded) -> None:
    with pytest.raises(UnknownName, match="kernel priority"), client_function("low"):
        pass
    with pytest.raises(InvalidInput, match="63 bytes"), client_function(name="x" * 64):
        pass
    with pytest.raises(InvalidInput, match="no CUDA stream"), client_function(stream="default"):
        pass
    with pytest.raises(InvalidInput, match="memory cap of -1"), client_function(memory_bytes=-1):
        pass
    assert library.calls == []


def test_what_the_library_cannot_do_never_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Preloaded(slot=-1)
    monkeypatch.setattr(client_module.ctypes, "CDLL", lambda name: None)  # a driver is there
    monkeypatch.setattr(client_module, "_preloaded", lambda: full)
    with pytest.warns(OutsideTierline, match="64 are allowed") as told, client_function(stream=7) as stream:
        assert stream == 7
    assert told[0].filename == __file__
    assert [call[0] for call in full.calls] == ["begin"]
    unbound = Preloaded(bound=-1)
    monkeypatch.setattr(client_module, "_preloaded", lambda: unbound)
    with pytest.warns(OutsideTierline, match="256 streams"), client_function(stream=7):
        pass
    assert unbound.calls[-1] == ("end", 3)


@pytest.mark.parametrize(("switch", "why"), [("on", "finds no CUDA driver"), ("off", "TIERLINE_KERNELS=off")])
def test_where_there_is_nothing_to_share_it_says_so(monkeypatch: pytest.MonkeyPatch, switch: str, why: str) -> None:
    def no_driver(name: str | None) -> None:
        raise OSError(name)

    monkeypatch.setattr(client_module, "_preloaded", lambda: Preloaded(slot=-1))
    monkeypatch.setattr(client_module.ctypes, "CDLL", no_driver)
    monkeypatch.setenv("TIERLINE_KERNELS", switch)
    with pytest.warns(OutsideTierline, match=why), client_function():
        pass
