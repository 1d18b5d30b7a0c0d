"""What images and iterations slow each other, from seconds that are given; and that both really run beside each other."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tierline.core.errors import InvalidInput  # noqa: E402
from tierline.core.request import Picture  # noqa: E402
from tierline.engine import calibrate_overlap  # noqa: E402
from tierline.engine.calibrate_overlap import Iteration, measure_overlap  # noqa: E402
from tierline.perf.device_sharing import Overlap  # noqa: E402

PICTURE = Picture("p", 1, 1, b"abc")
PATIENCE_S = 0.5


class Family:
    """Encodes whatever comes; `broken`: cannot. From the first image beside iterations on, each waits a while for an
    iteration that begins meanwhile."""

    def __init__(self, broken: bool = False) -> None:
        self.embedding = torch.nn.Embedding(1, 1)
        self.config = self.folder = None
        self.broken = broken
        self.encoded = 0
        self.under_way, self.met = threading.Event(), threading.Event()
        self.meetings = 0

    def encode(self, pictures: list[Picture]) -> list[Any]:
        if self.broken:
            raise ValueError("no such picture")
        self.encoded += 1
        if self.encoded > 1 + calibrate_overlap.IMAGES:  # the first warms up, and some are alone
            self.met.clear()
            self.under_way.set()
            self.meetings += self.met.wait(PATIENCE_S)
            self.under_way.clear()
        return [torch.zeros(2, 4)]

    def iterate(self) -> float:
        if self.under_way.is_set():
            self.met.set()
        time.sleep(0.001)
        return 0.001


@pytest.fixture(autouse=True)
def no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.engine.encoder.image_layout_of", lambda config, folder: None)


def measured(
    monkeypatch: pytest.MonkeyPatch,
    decodes: tuple[float, float],
    prompt: tuple[float, float],
    sizes: tuple[int, int],
    ridge: int,
) -> Overlap:
    """What follows where iterations of `sizes` tokens, and images beside them, take so many times as long."""

    def beside(self: Any, iterate: Any, count: int) -> tuple[list[float], list[float]]:
        by_itself_s = iterate()
        iteration, image = decodes if by_itself_s == sizes[0] else prompt
        return [by_itself_s * iteration] * 3, [10.0 * image] * count

    monkeypatch.setattr(calibrate_overlap._Images, "one", lambda self: 10.0)
    monkeypatch.setattr(calibrate_overlap._Images, "beside", beside)
    few, many = Iteration(sizes[0], lambda: float(sizes[0])), Iteration(sizes[1], lambda: float(sizes[1]))
    family: Any = Family()
    return measure_overlap(family, PICTURE, few, many, ridge, 0.0)


def test_the_middle_of_what_iterations_and_images_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, (1.2, 1.2), (1.5, 2.16), (1, 80), 40)
    assert (found.ridge_tokens, found.encoder_bandwidth) == (40.0, pytest.approx(0.2))
    assert found.encoder_arithmetic == pytest.approx(0.8)  # the root of 1.5 x 2.16 is 1.8
    assert (found.slowdown(1), found.slowdown(400)) == (pytest.approx(1.2), pytest.approx(1.8))


def test_what_was_measured_is_predicted_where_no_iteration_reaches_the_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, (1.3, 1.3), (1.5, 1.5), (16, 1024), 4000)
    assert (found.slowdown(16), found.slowdown(1024)) == (pytest.approx(1.3), pytest.approx(1.5))
    assert found.slowdown(4000) == pytest.approx(1.5 + 1 - 1024 / 4000)


def test_nothing_gets_faster_by_company(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, (0.9, 0.95), (0.9, 1.0), (1, 64), 40)
    assert (found.encoder_arithmetic, found.encoder_bandwidth) == (0.0, 0.0)


def test_images_and_iterations_run_beside_each_other() -> None:
    family: Any = Family()
    told: list[int] = []
    few, many = Iteration(1, family.iterate), Iteration(8, family.iterate)
    measure_overlap(family, PICTURE, few, many, 4, 0.0, told.append)
    assert told == [1]
    assert family.meetings >= 2 * calibrate_overlap.IMAGES, "an iteration began while an image was encoded"


def test_a_picture_that_cannot_be_encoded_is_told() -> None:
    family: Any = Family(broken=True)
    with pytest.raises(InvalidInput, match="An image cannot be encoded: ValueError: no such picture"):
        measure_overlap(family, PICTURE, Iteration(1, lambda: 1.0), Iteration(8, lambda: 1.0), 4, 0.0)
