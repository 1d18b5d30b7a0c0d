"""The encoder lane's stream on a GPU, where all that is CUDA's writes down what it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tierline.core.request import Picture  # noqa: E402
from tierline.engine.encoder import EncoderLane  # noqa: E402

GPU = SimpleNamespace(type="cuda")


class Stream:
    def __init__(self, name: str, asked: list[str]) -> None:
        self.name = name
        self._asked = asked

    def wait_stream(self, other: Stream) -> None:
        self._asked.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self._asked.append(f"{self.name} ends")


class Embeddings:
    device = GPU

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    def contiguous(self) -> Embeddings:
        return self

    def record_stream(self, stream: Stream) -> None:
        self._asked.append(f"read on {stream.name}")

    def __len__(self) -> int:
        return 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    default = Stream("default", found)

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        found.append(f"on {stream.name}")
        yield
        found.append(f"off {stream.name}")

    monkeypatch.setattr("tierline.engine.encoder.image_layout_of", lambda config, folder: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("own", found))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: default)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return found


def encode(asked: list[str], **options: Any) -> list[str]:
    def encode(pictures: list[Picture]) -> list[Any]:
        asked.append("encode")
        return [Embeddings(asked)]

    weight = SimpleNamespace(weight=SimpleNamespace(device=GPU))
    family: Any = SimpleNamespace(config=None, folder="", embedding=weight, encode=encode)
    lane = EncoderLane(family, lambda: asked.append("told"), **options)
    lane.submit(Picture("p", 1, 1, b"abc"))
    lane.close()
    (done,) = lane.take()
    assert done.error == "" and done.embeddings is not None
    return asked


def test_an_image_has_a_stream_of_its_own_and_is_told_of_when_it_is_there(asked: list[str]) -> None:
    assert encode(asked) == [
        "own waits for default", "own ends", "on own", "encode", "off own", "own ends", "read on default", "told",
    ]  # fmt: skip


def test_where_an_image_may_not_be_beside_an_iteration_it_waits_for_the_one_before(asked: list[str]) -> None:
    found = encode(asked, beside=False)
    assert not [each for each in found if "own" in each]
    assert found.index("default ends") < found.index("encode") < len(found) - 1 - found[::-1].index("default ends")
    assert found[-1] == "told"
