"""What images and iterations slow each other, from seconds that are given; and that both really run beside each other."""

from __future__ import annotations

import time
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tierline.core.errors import InvalidInput  # noqa: E402
from tierline.core.request import Picture  # noqa: E402
from tierline.engine import calibrate_overlap  # noqa: E402
from tierline.engine.calibrate_overlap import measure_overlap  # noqa: E402

PICTURE = Picture("p", 1, 1, b"abc")


class Family:
    """Encodes whatever comes; `broken`: cannot."""

    def __init__(self, broken: bool = False) -> None:
        self.embedding = torch.nn.Embedding(1, 1)
        self.config = self.folder = None
        self.broken = broken
        self.encoded = 0

    def encode(self, pictures: list[Picture]) -> list[Any]:
        if self.broken:
            raise ValueError("no such picture")
        self.encoded += 1
        return [torch.zeros(2, 4)]


@pytest.fixture(autouse=True)
def no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.engine.encoder.image_layout_of", lambda config, folder: None)


def given(monkeypatch: pytest.MonkeyPatch, few: tuple[float, float], many: tuple[float, float]) -> None:
    """Beside each other iterations of one token, and of more, take so many times as long, and images too."""

    def beside(self: Any, iterate: Any, count: int) -> tuple[list[float], list[float]]:
        by_itself_s = iterate()
        iteration, image = few if by_itself_s == 1.0 else many
        return [by_itself_s * iteration] * 3, [10.0 * image] * count

    monkeypatch.setattr(calibrate_overlap._Images, "one", lambda self: 10.0)
    monkeypatch.setattr(calibrate_overlap._Images, "beside", beside)


def test_the_middle_of_what_iterations_and_images_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, (1.2, 1.2), (1.5, 2.16))
    asked: list[int] = []

    def iterate(tokens: int) -> float:
        asked.append(tokens)
        return float(tokens)

    family: Any = Family()
    found = measure_overlap(family, PICTURE, iterate, tipping_tokens=40, most_tokens=1000, until=0.0)
    assert set(asked) == {1, 80}  # the second is bound by arithmetic
    assert (found.ridge_tokens, found.encoder_bandwidth) == (40.0, pytest.approx(0.2))
    assert found.encoder_arithmetic == pytest.approx(0.8)  # the root of 1.5 x 2.16 is 1.8
    assert (found.slowdown(1), found.slowdown(400)) == (pytest.approx(1.2), pytest.approx(1.8))


def test_nothing_gets_faster_by_company_and_prompts_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, (0.9, 0.95), (0.9, 1.0))
    asked: list[int] = []
    family: Any = Family()
    found = measure_overlap(family, PICTURE, lambda tokens: asked.append(tokens) or float(tokens), 40, 64, 0.0)
    assert set(asked) == {1, 64}
    assert (found.encoder_arithmetic, found.encoder_bandwidth) == (0.0, 0.0)


def test_images_follow_each_other_as_long_as_iterations_run() -> None:
    family: Any = Family()
    running: list[int] = []  # images so far, before each iteration

    def iterate(tokens: int) -> float:
        running.append(family.encoded)
        time.sleep(0.002)
        return 0.002

    measure_overlap(family, PICTURE, iterate, tipping_tokens=4, most_tokens=8, until=0.0)
    turns = len(running) - 2 * calibrate_overlap.ITERATIONS
    assert turns >= 2, "an iteration of each kind ran beside images"
    alone = 1 + calibrate_overlap.IMAGES  # the first warms up
    assert running[: calibrate_overlap.ITERATIONS] == [alone] * calibrate_overlap.ITERATIONS, "no image ran meanwhile"
    assert family.encoded >= alone + 2 * calibrate_overlap.IMAGES


def test_a_picture_that_cannot_be_encoded_is_told() -> None:
    family: Any = Family(broken=True)
    with pytest.raises(InvalidInput, match="An image cannot be encoded: ValueError: no such picture"):
        measure_overlap(family, PICTURE, float, 4, 8, 0.0)
