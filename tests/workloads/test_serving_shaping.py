"""Bursts, drift, repeated pictures, the cap of lengths: what each changes, and what it must not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tierline.core.served_trace import TracedRequest
from tierline.workloads.serving import load_served
from tierline.workloads.serving.columns import Columns, cut
from tierline.workloads.serving.shaping import Bursts, Drift, pictures
from tierline.workloads.serving.sizes import picture_px


def counts(requests: tuple[TracedRequest, ...], edges: list[float], images: bool) -> list[int]:
    times = [r.arrived_ns / 1e9 for r in requests if bool(r.images) == images]
    return np.histogram(times, edges)[0].tolist()


MIX = "mix?rate=40&mm_share=0.5&seconds=600{}+synthetic?images=1+synthetic?images=0"


def test_bursts_move_images_and_nothing_else() -> None:
    calm = load_served(MIX.format("")).requests
    stormy = load_served(MIX.format("&burst_every_s=60&burst_s=10&burst_factor=4")).requests
    assert [r for r in stormy if not r.images] == [r for r in calm if not r.images]
    edges = [float(x) for start in range(0, 600, 60) for x in (start, start + 50)] + [600.0]
    found = counts(stormy, edges, images=True)
    quiet, burst = sum(found[::2]) / 500, sum(found[1::2]) / 100
    assert burst / quiet == pytest.approx(4.0, rel=0.12)
    minutes = [float(x) for x in range(0, 601, 60)]
    assert counts(stormy, minutes, images=True) == counts(calm, minutes, images=True)  # each period keeps its number
    assert [r.text_tokens for r in stormy if r.images] == [r.text_tokens for r in calm if r.images]


def test_a_burst_is_the_inverse_of_its_intensity() -> None:
    bursts = Bursts(every_s=10.0, burst_s=2.0, factor=3.0)  # 8 s at 5/7, 2 s at 15/7
    assert bursts.after(np.array([0.0, 8 * 5 / 7, 10.0 - 1e-9, 10.0, 12.5])) == pytest.approx(
        [0.0, 8.0, 10.0, 10.0, 13.5], abs=1e-6
    )


def test_the_mix_drifts_and_the_rate_does_not() -> None:
    requests = load_served(MIX.format("&mm_share_end=0.9").replace("mm_share=0.5", "mm_share=0.1")).requests
    edges = [float(x) for x in range(0, 601, 100)]
    images, text = counts(requests, edges, images=True), counts(requests, edges, images=False)
    shares = [i / (i + t) for i, t in zip(images, text, strict=True)]
    expected = [0.1 + 0.8 * (n + 0.5) / 6 for n in range(6)]
    assert shares == pytest.approx(expected, abs=0.04)
    assert [i + t for i, t in zip(images, text, strict=True)] == pytest.approx([4000] * 6, rel=0.06)


def test_drift_ends_where_it_began_and_leaves_what_lies_behind() -> None:
    drift = Drift(0.0, 1.0, 100.0)
    assert drift.after(np.array([0.0, 25.0, 100.0, 120.0]), images=True) == pytest.approx([0.0, 50.0, 100.0, 120.0])
    assert drift.after(np.array([0.0, 75.0, 100.0]), images=False) == pytest.approx([0.0, 50.0, 100.0], abs=1e-6)


def images_only(counts: list[int], sizes: list[int]) -> Columns:
    n = len(counts)
    return Columns(
        np.arange(n, dtype=float), np.ones(n, np.int64), np.ones(n, np.int64), np.array(counts), np.array(sizes),
        np.zeros(n, np.int64), ("s",),
    )  # fmt: skip


@pytest.mark.parametrize("repeat", [0.0, 0.1, 0.3, 0.9])
def test_the_repeat_rate_is_the_asked_one(repeat: float) -> None:
    rng = np.random.default_rng(3)
    each = rng.integers(0, 4, 20_000)
    total = int(each.sum())
    which, sizes = pictures(images_only(each.tolist(), rng.integers(1, 1280, total).tolist()), repeat, rng)
    new = len(set(which.tolist()))
    assert 1 - new / total == pytest.approx(repeat, abs=5 * np.sqrt(repeat * (1 - repeat) / total) + 1e-4)
    by_picture: dict[int, set[int]] = {}
    for number, size in zip(which.tolist(), sizes.tolist(), strict=True):
        by_picture.setdefault(number, set()).add(size)
    assert all(len(found) == 1 for found in by_picture.values())
    seen: set[int] = set()
    at = 0
    for count in each.tolist():  # a repeat is of an earlier request
        mine = which[at : at + count].tolist()
        fresh = [number for number in mine if number not in seen]
        assert len(set(fresh)) == len(fresh)
        seen.update(mine)
        at += count


def test_repeats_follow_zipf_s_law() -> None:
    rng = np.random.default_rng(4)
    n = 60_000
    which, _ = pictures(images_only([1] * n, [5] * n), 0.5, rng)
    uses = Counter(which.tolist())
    popular = [np.mean([uses[i] for i in range(a, b)]) for a, b in ((10, 20), (100, 200), (1000, 2000))]
    # ten times the rank, a tenth of the uses; its first use, and that it is known later, bend the tail
    assert 6 < popular[0] / popular[1] < 12 and 2 < popular[1] / popular[2] < 10


def test_without_images_nothing_is_repeated() -> None:
    which, sizes = pictures(images_only([0, 0], []), 0.5, np.random.default_rng(0))
    assert len(which) == len(sizes) == 0


def test_the_cap_takes_images_then_text_then_the_answer() -> None:
    columns = Columns(
        arrived_s=np.arange(5.0),
        text_tokens=np.array([50, 500, 50, 10, 5]),
        output_tokens=np.array([40, 60, 500, 10, 5]),
        image_counts=np.array([0, 0, 2, 3, 1]),
        image_tokens=np.array([30, 30, 40, 50, 60, 500]),
        stream=np.zeros(5, np.int64),
        streams=("s",),
        prefixes=((), (("a", 30), ("b", 100)), (), (), ()),
    )
    capped, kept = columns.within(100)
    assert capped.text_tokens.tolist() == [50, 40, 1, 1, 5]
    assert capped.output_tokens.tolist() == [40, 60, 39, 9, 5]
    assert capped.image_counts.tolist() == [0, 0, 2, 2, 0]
    assert kept.tolist() == [True, True, True, True, False, False]
    assert capped.prefixes[1] == (("a", 30), ("b", 10))
    same, all_kept = columns.within(0)
    assert same is columns and all_kept.all()


def test_no_request_of_a_capped_workload_is_longer() -> None:
    requests = load_served("synthetic?requests=3000&context=900&prefix_share=0.5&images=3&repeat=0.2").requests
    assert max(r.prompt_tokens + r.output_tokens for r in requests) <= 900
    assert any(len(r.images) > 1 for r in requests)
    assert all(sum(tokens for _, tokens in r.prefix) <= r.text_tokens for r in requests)


def test_a_prefix_is_cut_inside_a_block() -> None:
    assert cut((("a", 5), ("b", 5)), 10) == (("a", 5), ("b", 5))
    assert cut((("a", 5), ("b", 5)), 7) == (("a", 5), ("b", 2))
    assert cut((("a", 5), ("b", 5)), 0) == ()


def test_pictures_have_about_the_wanted_tokens() -> None:
    for tokens in range(1, 3000):
        width, height = picture_px(tokens)
        assert width % 28 == height % 28 == 0
        assert abs(width // 28 * (height // 28) - tokens) <= max(2, 0.03 * tokens)
        assert tokens <= 3 or width <= 2 * height
    assert picture_px(1280) == (40 * 28, 32 * 28)
    assert picture_px(64, 32) == (256, 256)
