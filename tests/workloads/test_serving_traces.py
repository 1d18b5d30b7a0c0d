"""Recorded traces: what their files become, at what rate, and what is said of files that are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tierline.core.errors import InvalidInput
from tierline.core.served_trace import ServedTrace
from tierline.workloads.serving import load_served

from .serving_files import (
    AZURE,
    AZURE_MM_TEXT,
    AZURE_TEXT,
    BURSTGPT_TEXT,
    MOONCAKE,
    MOONCAKE_LINES,
    mooncake_file,
    needs_data,
)


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def seconds(trace: ServedTrace) -> list[float]:
    return [request.arrived_ns / 1e9 for request in trace.requests]


def test_azure_as_it_is(tmp_path: Path) -> None:
    trace = load_served(f"azure:{written(tmp_path, AZURE_TEXT)}")
    assert seconds(trace) == pytest.approx([0.0, 4.314579, 4.541877, 4.710451], abs=1e-6)
    assert [(r.text_tokens, r.output_tokens) for r in trace.requests] == [(374, 44), (396, 109), (879, 55), (91, 16)]
    assert {r.stream for r in trace.requests} == {"azure"} and not any(r.images or r.prefix for r in trace.requests)


def test_a_packed_file_is_the_same(tmp_path: Path) -> None:
    packed = tmp_path / "trace.csv.gz"
    packed.write_bytes(gzip.compress(AZURE_TEXT.encode()))
    plain = load_served(f"azure:{written(tmp_path, AZURE_TEXT)}")
    assert load_served(f"azure:{packed}").workload_hash == plain.workload_hash


def test_azure_multimodal_shares_the_context_between_text_and_images(tmp_path: Path) -> None:
    trace = load_served(f"azure-mm:{written(tmp_path, AZURE_MM_TEXT)}?image_tokens=500")
    found = [(r.text_tokens, [i.tokens for i in r.images], r.output_tokens) for r in trace.requests]
    assert found == [
        (770, [], 491),
        (449, [500], 126),
        (4564 - 16 * 284, [284] * 16, 137),
        (8, [1, 1], 1),  # a context that holds not even the least text beside its images
    ]
    assert seconds(trace) == pytest.approx([0.0, 5.55, 6.244, 7.063])


def test_burstgpt_leaves_out_what_failed_and_can_choose_a_model(tmp_path: Path) -> None:
    path = written(tmp_path, BURSTGPT_TEXT)
    trace = load_served(f"burstgpt:{path}")
    assert [(r.text_tokens, r.output_tokens, r.stream) for r in trace.requests] == [
        (472, 18, "burstgpt/ChatGPT"),
        (1087, 230, "burstgpt/ChatGPT"),
        (417, 276, "burstgpt/GPT-4"),
        (30, 10, "burstgpt/GPT-4"),
    ]
    only = load_served(f"burstgpt:{path}?model=GPT-4")
    assert seconds(only) == [0.0, 7.0] and len(only.requests) == 2
    with pytest.raises(InvalidInput, match="no model 'Llama'; it has ChatGPT, GPT-4"):
        load_served(f"burstgpt:{path}?model=Llama")


def test_mooncake_s_blocks_become_prefixes_as_far_as_they_are_shared(tmp_path: Path) -> None:
    first, second, third, fourth = load_served(f"mooncake:{mooncake_file(tmp_path)}").requests
    assert first.prefix == (("mooncake-0", 512), ("mooncake-1", 512), ("mooncake-2", 176)) == third.prefix
    assert second.prefix == (("mooncake-0", 512), ("mooncake-1", 512))  # block 3 is its own
    assert fourth.prefix == ()
    assert (second.text_tokens, second.output_tokens) == (1030, 1)


def test_a_second_round_shares_no_prefix_with_the_first(tmp_path: Path) -> None:
    trace = load_served(f"mooncake:{mooncake_file(tmp_path)}?requests=8")
    first, second = ({key for r in part for key, _ in r.prefix} for part in (trace.requests[:4], trace.requests[4:]))
    assert first and second and not first & second
    assert trace.requests[4].prefix[0] == ("mooncake-0@1", 512)


def steady(folder: Path, gaps_s: list[float]) -> Path:
    at = np.datetime64("2024-01-01T00:00:00", "ms") + np.rint(np.cumsum([0.0, *gaps_s]) * 1000).astype(
        "timedelta64[ms]"
    )
    rows = [f"{time},{100 + n},{10 + n}" for n, time in enumerate(at)]
    return written(folder, "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))


def test_stretching_keeps_proportions_and_gives_the_rate(tmp_path: Path) -> None:
    source = f"azure:{steady(tmp_path, [1.0, 3.0] * 10)}"
    own, fast = load_served(source), load_served(f"{source}?rate=20")
    assert len(fast.requests) == len(own.requests) == 21
    gaps, faster = np.diff(seconds(own)), np.diff(seconds(fast))
    assert faster / gaps == pytest.approx(np.full(20, 21 / 20 / 42), abs=1e-5)
    exact = load_served(f"{source}?rate=20&seconds=10")
    assert len(exact.requests) == 200 and seconds(exact)[-1] < 10.0  # the trace nearly ten times over
    assert len(load_served(f"{source}?rate=20&seconds=10&requests=30").requests) == 30


def test_thinning_keeps_times_and_gives_the_rate(tmp_path: Path) -> None:
    source = f"azure:{steady(tmp_path, [0.1] * 5000)}?scale=thin"
    thin = load_served(f"{source}&rate=2&seconds=400")
    assert len(thin.requests) == pytest.approx(800, abs=5 * (800 * 0.8) ** 0.5)
    assert {round(at * 10, 6) % 1 for at in seconds(thin)} == {0.0}
    assert len(load_served(f"{source}&rate=2&requests=900").requests) == 900
    with pytest.raises(InvalidInput, match="has 10 requests/s, which thinning cannot make 11"):
        load_served(f"{source}&rate=11")
    with pytest.raises(InvalidInput, match="'scale' of workload 'azure' is stretch or thin, but got 'squeeze'"):
        load_served(f"azure:{steady(tmp_path, [1.0])}?scale=squeeze")


def test_another_seed_begins_elsewhere_in_the_trace(tmp_path: Path) -> None:
    source = f"azure:{steady(tmp_path, [1.0] * 500)}?requests=5"
    begins = [load_served(source, seed=seed).requests[0].text_tokens for seed in range(6)]
    assert begins[0] == 100 and len(set(begins)) == 6
    lengths = [r.text_tokens for r in load_served(source, seed=3).requests]
    assert lengths == list(range(lengths[0], lengths[0] + 5))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("azure", "", "is empty; a header with TIMESTAMP, ContextTokens, GeneratedTokens is needed"),
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "has a header, but no rows"),
        ("azure", AZURE_TEXT.replace("GeneratedTokens", "Generated"), "no column GeneratedTokens; its columns are"),
        (
            "azure",
            AZURE_TEXT.replace(",396,", ",many,"),
            "row 3: ContextTokens is 'many', but a whole number is needed",
        ),
        ("azure", AZURE_TEXT.replace(",396,", ",-396,"), "row 3: ContextTokens is -396, but must not be below 0"),
        ("azure", AZURE_TEXT.replace("18:15:51.2", "18:14:51.2"), "not sorted by TIMESTAMP: request 3 lies before"),
        ("azure", AZURE_TEXT.replace("2023-11-16 18:15:50", "Thursday"), "row 3: TIMESTAMP is 'Thursday.9951690'"),
        ("azure", AZURE_TEXT.replace(",396,109", ""), "row 3: 1 values, but the header names 3"),
        ("azure", "\n".join(AZURE_TEXT.splitlines()[:2]), "all 1 requests have the same time"),
        ("azure-mm", AZURE_TEXT, "no column NumImages"),
        ("azure-mm", AZURE_MM_TEXT.replace("NumImages", "Images"), "no column NumImages"),
        (
            "burstgpt",
            AZURE_TEXT,
            "no column Timestamp and no column Model and no column Request tokens and no column Res",
        ),
        ("burstgpt", BURSTGPT_TEXT.replace("45,C", "4,C"), "not sorted by Timestamp: request 2"),
        ("burstgpt", BURSTGPT_TEXT.replace("45,C", "nan,C"), "row 3: Timestamp is 'nan', but seconds are needed"),
        ("burstgpt", "\n".join(BURSTGPT_TEXT.splitlines()[::4]), "holds no request that was answered"),
        ("mooncake", "", "is empty; lines with timestamp, input_length"),
        ("mooncake", AZURE_TEXT, "line 1: timestamp, input_length, output_length and hash_ids are needed"),
        ("mooncake", '{"timestamp": 1, "input_length": 5, "output_length": 1}', "line 1: timestamp, input_length"),
    ],
)
def test_files_that_are_no_such_trace(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        load_served(f"{name}:{written(tmp_path, text)}")
    assert "\n" not in str(caught.value)


def test_mooncake_lines_that_do_not_fit(tmp_path: Path) -> None:
    first = MOONCAKE_LINES[0]
    with pytest.raises(InvalidInput, match="line 1: 1200 tokens are not 2 blocks of 512"):
        load_served(f"mooncake:{mooncake_file(tmp_path, [first | {'hash_ids': [0, 1]}])}")
    with pytest.raises(InvalidInput, match="not sorted by timestamp: request 2"):
        load_served(f"mooncake:{mooncake_file(tmp_path, [first | {'timestamp': 5}, first])}")


def test_a_file_that_is_not_packed_though_its_name_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_served(f"azure:{written(tmp_path, AZURE_TEXT, 'trace.csv.gz')}")


@needs_data
def test_the_real_traces() -> None:
    azure = load_served(f"azure:{AZURE}")
    assert len(azure.requests) == 19_366
    assert np.mean([r.text_tokens for r in azure.requests]) == pytest.approx(1154.7, abs=0.1)
    assert np.mean([r.output_tokens for r in azure.requests]) == pytest.approx(211.1, abs=0.1)
    mooncake = load_served(f"mooncake:{MOONCAKE}")
    assert len(mooncake.requests) == 12_031 and mooncake.requests[-1].arrived_ns == 3_536_999_000_000
    asked = sum(r.text_tokens for r in mooncake.requests)
    seen: set[str] = set()
    cached = 0
    for request in mooncake.requests:
        for key, tokens in request.prefix:
            if key not in seen:
                break
            cached += tokens
        seen.update(key for key, _ in request.prefix)
    assert 0.3 < cached / asked < 0.5  # Mooncake reports about 40 % at best for this trace
