"""The grammar of serving workloads: sources, mixes, shares, rates, and one sentence for each mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tierline.core.errors import InvalidInput, NotFound, UnknownName
from tierline.core.served_trace import TracedImage, TracedRequest
from tierline.workloads.serving import SERVING_WORKLOADS, load_served, served_trace, workload_hash
from tierline.workloads.serving.source import parse

from .serving_files import (
    AZURE_MM_TEXT,
    AZURE_TEXT,
    BURSTGPT_TEXT,
    mooncake_file,
    servegen_folder,
)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """One small source of every name in the registry."""
    for name, text in (("azure", AZURE_TEXT), ("azure-mm", AZURE_MM_TEXT), ("burstgpt", BURSTGPT_TEXT)):
        (tmp_path / f"{name}.csv").write_text(text)
    folder = tmp_path / "servegen+images"  # a plus in a path is no plus of the grammar
    folder.mkdir()
    servegen_folder(folder, ["0,2.0,1.0,Gamma,1.0,0.5", "600,1,1,Gamma,1,1"])
    found = {name: f"{name}:{tmp_path / name}.csv" for name in ("azure", "azure-mm", "burstgpt")}
    found |= {
        "mooncake": f"mooncake:{mooncake_file(tmp_path)}",
        "servegen": f"servegen:{folder}",
        "synthetic": "synthetic",
    }
    assert set(found) == set(SERVING_WORKLOADS)
    return found


def test_a_mix_ends_for_all_its_sources_at_once(sources: dict[str, str]) -> None:
    requests = load_served("synthetic?mm_share=0.1").requests
    assert len(requests) == 1000
    half = [bool(r.images) for r in requests if r.arrived_ns > requests[-1].arrived_ns / 2]
    assert np.mean(half) == pytest.approx(0.1, abs=0.05)
    with pytest.raises(InvalidInput, match="a mix needs an end: seconds or requests"):
        load_served(f"mix?rate=5+{sources['azure']}+{sources['servegen']}")


@pytest.mark.parametrize("name", SERVING_WORKLOADS)
def test_every_source_keeps_the_contract(name: str, sources: dict[str, str]) -> None:
    source = f"{sources[name]}?rate=5&requests=300&repeat=0.2&context=2000"
    trace = load_served(source, seed=3)
    again = load_served(source, seed=3)
    assert trace == again and trace.workload_hash == workload_hash(trace.requests)
    assert load_served(source, seed=4).workload_hash != trace.workload_hash
    assert len(trace.requests) == 300
    arrivals = [r.arrived_ns for r in trace.requests]
    assert arrivals == sorted(arrivals) and arrivals[0] >= 0 and all(at % 1000 == 0 for at in arrivals)
    assert arrivals[-1] / 1e9 == pytest.approx(60, rel=0.35)
    assert all(r.text_tokens >= 1 and r.output_tokens >= 1 and r.stream.startswith(name) for r in trace.requests)
    assert max(r.prompt_tokens + r.output_tokens for r in trace.requests) <= 2000
    short = load_served(f"{sources[name]}?rate=5&seconds=20", seed=3).requests
    assert 20 < len(short) < 250 and short[-1].arrived_ns < 20e9


def test_a_mix_has_the_wanted_rate_and_share(sources: dict[str, str]) -> None:
    for share in (0.0, 0.2, 0.8, 1.0):
        mix = f"mix?rate=50&seconds=200&mm_share={share}+{sources['servegen']}+{sources['azure']}+{sources['burstgpt']}"
        requests = load_served(mix).requests
        assert len(requests) == pytest.approx(10_000, rel=0.04)
        assert np.mean([bool(r.images) for r in requests]) == pytest.approx(share, abs=0.015)
        text = [r.stream for r in requests if not r.images]
        assert sum(name == "azure" for name in text) == pytest.approx(len(text) / 2, abs=2)


def test_sources_of_a_mix_keep_their_own_rates(sources: dict[str, str]) -> None:
    mix = f"{sources['servegen']}?rate=6+{sources['azure']}?rate=2"
    _, parts = parse(mix)
    assert [part.rate for part in parts] == [6.0, 2.0] and parts[0].path.endswith("servegen+images")
    requests = load_served(mix, seconds=300).requests
    assert sum(r.stream == "azure" for r in requests) == 600
    faster = load_served(f"mix?rate=16&seconds=300+{mix}").requests  # in proportion
    assert sum(r.stream == "azure" for r in faster) == 1200


def test_a_source_twice_has_two_names_and_other_draws() -> None:
    requests = load_served("mix?rate=10&requests=200+synthetic?images=1+synthetic?images=1").requests
    first, second = (
        [r.text_tokens for r in requests if r.stream == name] for name in ("synthetic/images", "synthetic/images#2")
    )
    assert len(first) > 50 < len(second) and first[:20] != second[:20]


def test_synthetic_alone_has_text_and_images() -> None:
    requests = load_served("synthetic?mm_share=0.3&requests=4000&rate=20&images=2").requests
    assert np.mean([bool(r.images) for r in requests]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([len(r.images) for r in requests if r.images]) == pytest.approx(2.0, abs=0.15)
    assert requests[-1].arrived_ns / 1e9 == pytest.approx(200, rel=0.06)
    assert np.median([r.text_tokens for r in requests]) == pytest.approx(300, rel=0.06)


def test_synthetic_options_do_what_they_say() -> None:
    source = "synthetic?images=0&requests=5000&rate=10&prefix_share=0.4&prefixes=3&prefix_tokens=100&cv=3"
    requests = load_served(source).requests
    with_prefix = [r for r in requests if r.prefix]
    assert len(with_prefix) / 5000 == pytest.approx(0.4, abs=0.04)
    assert len({r.prefix for r in with_prefix}) == 3 and all(r.text_tokens > 100 for r in with_prefix)
    gaps = np.diff([r.arrived_ns for r in requests])
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)


def test_keywords_go_before_the_source_s_own_words(sources: dict[str, str]) -> None:
    assert len(load_served(f"{sources['azure']}?requests=50&rate=3", requests=7).requests) == 7
    assert load_served("synthetic?seed=5&requests=9") == load_served("synthetic?seed=5&requests=9", seed=5)
    assert load_served("synthetic?seed=5&requests=9") != load_served("synthetic?seed=5&requests=9", seed=0)


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("azur:x", UnknownName, "unknown serving workload 'azur': did you mean 'azure'?"),
        ("", UnknownName, "unknown serving workload ''"),
        ("azure", NotFound, "needs a file: 'azure:PATH', and there is none at ''"),
        ("azure:nowhere.csv", NotFound, "none at 'nowhere.csv'"),
        ("servegen:nowhere", NotFound, "needs a folder"),
        ("synthetic:x", InvalidInput, "is synthetic and takes no path"),
        ("mix:x+synthetic", InvalidInput, "'mix' takes no path"),
        ("mix?rate=3", InvalidInput, "'mix' needs sources behind it"),
        ("synthetic?speed=3", UnknownName, "unknown option of workload 'synthetic' 'speed'"),
        ("synthetic?repeats=0.1", UnknownName, "did you mean 'repeat'"),
        ("mix?speed=3+synthetic+synthetic", UnknownName, "unknown option of workload 'mix' 'speed'"),
        ("synthetic?rate=fast", InvalidInput, "takes float, but got 'fast'"),
        ("synthetic?rate=0", InvalidInput, "requests per second above 0, but got '0'"),
        ("synthetic?rate=-1", InvalidInput, "requests per second above 0"),
        ("synthetic?seconds=nan", InvalidInput, "finite numbers"),
        ("synthetic?seconds=-1", InvalidInput, "must not be below 0"),
        ("synthetic?requests=1.5", InvalidInput, "takes int, but got '1.5'"),
        ("synthetic?repeat=1", InvalidInput, "repeat is a share of images from 0 to below 1, but got 1"),
        ("synthetic?mm_share=1.2", InvalidInput, "mm_share is a share of requests in 0..1, but got 1.2"),
        ("synthetic?mm_share_end=0.5&seconds=10", InvalidInput, "mm_share_end needs mm_share"),
        (
            "synthetic?mm_share=0.1&mm_share_end=0.5",
            InvalidInput,
            "mm_share_end needs mm_share, from where, and seconds",
        ),
        ("synthetic?burst_every_s=10", InvalidInput, "bursts need 0 < burst_s < burst_every_s"),
        ("synthetic?burst_factor=3", InvalidInput, "bursts need burst_every_s"),
        ("synthetic?context=7", InvalidInput, "context is a number of tokens, 8 or more"),
        ("synthetic?cv=0", InvalidInput, "cv of workload 'synthetic' must be above 0"),
        ("synthetic?cv=nan", InvalidInput, "option 'cv' of workload 'synthetic' must be a finite number"),
        ("synthetic?images=0.5", InvalidInput, "images must be 0 or at least 1"),
        ("synthetic?text_tokens=0", InvalidInput, "at least 1"),
        ("synthetic?images=0&mm_share=0.5", InvalidInput, "but 'synthetic' is one source"),
        ("synthetic?seconds=0.000001", InvalidInput, "holds no requests"),
        ("mix?mm_share=0.5+synthetic?rate=3+synthetic?rate=3", InvalidInput, "needs sources with and without images"),
        ("synthetic+synthetic", InvalidInput, "a mix needs rates"),
        ("mix?mm_share=0.5+synthetic+synthetic?images=0", InvalidInput, "mm_share needs a rate"),
        ("synthetic?rate=3+synthetic", InvalidInput, "either every source has a rate or none"),
        ("synthetic?rate=3&repeat=0.1+synthetic?rate=3", InvalidInput, r"write mix\?repeat=0.1\+synthetic"),
        ("synthetic?rate=3+azure:", NotFound, "needs a file"),
    ],
)
def test_mistakes_are_told_in_one_sentence(source: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        load_served(source)
    assert "\n" not in str(caught.value)


def test_the_hash_tells_any_difference() -> None:
    image = TracedImage("a", 10, 40)
    request = TracedRequest(5, 20, 7, (image,), (("p", 4),), 1, "s")
    changes: list[dict[str, object]] = [
        {"arrived_ns": 6},
        {"text_tokens": 21},
        {"output_tokens": 8},
        {"images": ()},
        {"images": (image, image)},
        {"images": (dataclasses.replace(image, content_hash="b"),)},
        {"images": (dataclasses.replace(image, tokens=11),)},
        {"images": (dataclasses.replace(image, patches=44),)},
        {"prefix": ()},
        {"prefix": (("p", 5),)},
        {"prefix": (("q", 4),)},
        {"priority": 2},
        {"stream": "t"},
    ]
    fields = {field.name for field in dataclasses.fields(TracedRequest)}
    assert {key for change in changes for key in change} == fields
    hashes = {workload_hash([dataclasses.replace(request, **change)]) for change in changes}  # type: ignore[arg-type]
    assert len(hashes | {workload_hash([request]), workload_hash([request, request])}) == len(changes) + 2


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "holds no requests"),
        ([TracedRequest(5, 1, 1), TracedRequest(4, 1, 1)], "request 1 arrives before"),
        ([TracedRequest(5, 0, 1)], "request 0 has a prompt or an answer without a token"),
        ([TracedRequest(5, 1, 0)], "request 0 has a prompt or an answer without a token"),
        ([TracedRequest(5, 3, 1, prefix=(("a", 4),))], "prefix of request 0 is longer"),
        (
            [TracedRequest(5, 3, 1, (TracedImage("a", 3), TracedImage("a", 4)))],
            "image 'a' of request 0 has no token or two",
        ),
        ([TracedRequest(5, 3, 1, (TracedImage("a", 0),))], "image 'a' of request 0 has no token"),
    ],
)
def test_a_trace_that_cannot_be(requests: list[TracedRequest], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        served_trace("mine", requests)
