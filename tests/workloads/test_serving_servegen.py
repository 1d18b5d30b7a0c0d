"""The sampler over ServeGen's clients: rates, gaps, marginals, independence; small files first, then the real ones."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tierline.core.errors import InvalidInput
from tierline.core.served_trace import ServedTrace
from tierline.workloads.serving import load_served
from tierline.workloads.serving.servegen import equilibrium, gaps
from tierline.workloads.serving.servegen_files import Discrete, Window, read_clients

from .serving_files import SERVEGEN, needs_data, period, servegen_folder

ROWS = ["0,2.0,1.0,Gamma,1.0,0.5", "600,0,0,,0,0", "1200,4.0,2.0,Gamma,0.25,1.0", "1800,1.0,0.5,Weibull,2.1,1.129"]


def per_window(trace: ServedTrace, window_s: float = 600.0) -> Counter[int]:
    return Counter(int(request.arrived_ns / 1e9 // window_s) for request in trace.requests)


def test_every_window_has_its_rate(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path, ROWS)
    counts: Counter[int] = Counter()
    for seed in range(10):
        counts.update(per_window(load_served(f"servegen:{folder}?seconds=2400", seed=seed)))
    assert 1 not in counts
    # the count of a renewal process has variance about CV² · mean; five standard deviations of 10 runs
    for window, mean, cv in ((0, 1200, 1.0), (2, 2400, 2.0), (3, 600, 0.5)):
        assert counts[window] / 10 == pytest.approx(mean, abs=5 * cv * math.sqrt(mean / 10))


def test_the_whole_has_the_wanted_rate_and_windows_keep_their_proportions(tmp_path: Path) -> None:
    counts = per_window(load_served(f"servegen:{servegen_folder(tmp_path, ROWS)}?seconds=2400&rate=10"))
    assert counts.total() / 2400 == pytest.approx(10, rel=0.05)
    assert counts[2] / counts[0] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("window", "cv"), [(Window(0, 1, "Gamma", 0.25), 2.0), (Window(0, 1, "Weibull", 2.1), 0.5)])
def test_gaps_have_mean_one_and_the_family_s_variation(window: Window, cv: float) -> None:
    drawn = gaps(window, np.random.default_rng(1), 200_000)
    assert drawn.mean() == pytest.approx(1.0, rel=0.02)
    assert drawn.std() == pytest.approx(cv, rel=0.02)


@pytest.mark.parametrize("window", [Window(0, 1, "Gamma", 0.25), Window(0, 1, "Weibull", 0.7)])
def test_the_first_arrival_is_that_of_a_process_in_equilibrium(window: Window) -> None:
    """Its mean is E[X²] / 2E[X]: longer than half a gap, the more so the burstier."""
    rng = np.random.default_rng(2)
    drawn = gaps(window, rng, 200_000)
    first = np.array([equilibrium(window, rng) for _ in range(20_000)])
    assert first.mean() == pytest.approx((drawn**2).mean() / 2.0, rel=0.06)


def test_a_window_held_stays_for_ever(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path, ROWS)
    counts = per_window(load_served(f"servegen:{folder}?seconds=3000&start_s=1200&hold=1"))
    assert min(counts[n] for n in range(5)) > 1800 and max(counts.values()) < 3000
    followed = per_window(load_served(f"servegen:{folder}?seconds=1800&start_s=1200"))
    assert followed[1] < 800 and 1000 < followed[2] < 1400  # the day begins anew


def test_a_longer_run_begins_as_the_shorter_one(tmp_path: Path) -> None:
    source = f"servegen:{servegen_folder(tmp_path, ROWS)}?hold=1"
    short, long = load_served(source, seconds=300), load_served(source, seconds=900)
    assert long.requests[: len(short.requests)] == short.requests
    assert load_served(source, requests=50).requests == short.requests[:50]


def test_lengths_are_drawn_independently(tmp_path: Path) -> None:
    trace = load_served(f"servegen:{servegen_folder(tmp_path, ROWS)}?seconds=600&rate=40")
    text = np.array([r.text_tokens for r in trace.requests])
    output = np.array([r.output_tokens for r in trace.requests])
    images = np.array([len(r.images) for r in trace.requests])
    first = np.array([r.images[0].tokens for r in trace.requests])
    bound = 5 / math.sqrt(len(text))
    for one, other in ((text, output), (text, images), (output, images), (text, first), (images, first)):
        assert abs(np.corrcoef(one, other)[0, 1]) < bound
    pairs = np.array([[i.tokens for i in r.images[:2]] for r in trace.requests if len(r.images) > 1])
    assert abs(np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1]) < 5 / math.sqrt(len(pairs))


def check_marginal(drawn: list[int], expected: Discrete) -> None:
    """Every value's frequency within five standard deviations, and no other value."""
    seen, total = Counter(drawn), len(drawn)
    assert set(seen) <= set(expected.values.tolist())
    for value, share in zip(expected.values.tolist(), np.diff(expected.upto, prepend=0.0).tolist(), strict=True):
        assert abs(seen[value] - total * share) <= 5 * math.sqrt(total * share * (1 - share)) + 1, value


def test_marginals_are_those_of_the_file(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path, ROWS)
    trace = load_served(f"servegen:{folder}?seconds=600&rate=20")
    expected = read_clients(str(folder))[0].periods[0][1]
    check_marginal([r.text_tokens for r in trace.requests], expected["text_tokens"])
    check_marginal([r.output_tokens for r in trace.requests], expected["output_tokens"])
    check_marginal([len(r.images) for r in trace.requests], expected["image_count"])
    check_marginal([i.tokens for r in trace.requests for i in r.images], expected["image_tokens"])


@needs_data
def test_marginals_and_rates_of_the_real_clients() -> None:
    """Three hours in which the distributions are those of one period, all 18 clients."""
    trace = load_served(f"servegen:{SERVEGEN}?start_s=21600&seconds=10800")
    by_stream: dict[str, list[int]] = {}
    for index, request in enumerate(trace.requests):
        by_stream.setdefault(request.stream, []).append(index)
    checked = 0
    for client in read_clients(str(SERVEGEN)):
        windows = [w for w in client.windows if 21600 <= w.begin_s < 32400]
        expected_count = sum(w.rate for w in windows) * client.window_s
        rows = [trace.requests[i] for i in by_stream.get(f"servegen/{client.number}", [])]
        # the largest variation of any client's gaps is below 6
        assert abs(len(rows) - expected_count) <= 5 * 6 * math.sqrt(expected_count + 1)
        if len(rows) < 200:
            continue
        checked += 1
        marginals = client.period(21600)
        check_marginal([r.output_tokens for r in rows], marginals["output_tokens"])
        check_marginal([r.text_tokens for r in rows], marginals["text_tokens"])
        check_marginal([len(r.images) for r in rows], marginals["image_count"])
        check_marginal([i.tokens for r in rows for i in r.images], marginals["image_tokens"])
    assert checked >= 6
    total = sum(w.rate for c in read_clients(str(SERVEGEN)) for w in c.windows if 21600 <= w.begin_s < 32400) * 600
    assert len(trace.requests) == pytest.approx(total, rel=0.02)


@needs_data
def test_gaps_of_a_real_client_vary_as_its_file_says() -> None:
    """The coefficient of variation in the file's third column, which the sampler does not read."""
    row = (SERVEGEN / "chunk-12-trace.csv").read_text().splitlines()[60].split(",")
    trace = load_served(f"servegen:{SERVEGEN}?start_s={row[0]}&seconds=1200&hold=1&rate=40")
    times = np.array([r.arrived_ns for r in trace.requests if r.stream == "servegen/12"]) / 1e9
    between = np.diff(times)
    assert len(between) > 5000
    assert between.std() / between.mean() == pytest.approx(float(row[2]), rel=0.06)


@pytest.mark.parametrize(
    ("rows", "dataset", "said"),
    [
        ([], None, "windows must begin at 0"),
        (["0,1.0,1.0,Gamma,1.0"], None, "windows must begin at 0"),
        (["0,1,1,Gamma,1,1", "600,1,1,Gamma,1,1", "1300,1,1,Gamma,1,1"], None, "at one distance"),
        (["0,much,1,Gamma,1,1", "600,0,0,,0,0"], None, "rows of begin, rate, CV, family"),
        (["0,1,1,Pareto,1,1", "600,0,0,,0,0"], None, "family 'Pareto'"),
        (["0,1", "600,0"], None, "rows of begin, rate, CV, family"),
        (ROWS, {"0": {}}, "distributions text_tokens, image_count"),
        (ROWS, {"0": period(output_tokens="{}")}, "distributions text_tokens"),
        (ROWS, {"0": period(output_tokens="{5: -1.0}")}, "a distribution without values"),
        (ROWS, {"0": period(audio_count="{0: 0.5, 1: 0.5}")}, "audio_count above 0"),
        (ROWS, {"0": period(output_tokens="{0: 1.0}")}, "client 0 sends requests at 0 s, but has no lengths"),
        (["0,0,0,,0,0", "600,0,0,,0,0"], None, "no client sends anything"),
    ],
)
def test_unusable_files(tmp_path: Path, rows: list[str], dataset: object, said: str) -> None:
    folder = servegen_folder(tmp_path, rows, dataset)
    with pytest.raises(InvalidInput, match=said):
        load_served(f"servegen:{folder}")


def test_unusable_folder_and_options(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no chunk-N-trace"):
        load_served(f"servegen:{tmp_path}")
    folder = servegen_folder(tmp_path, ROWS)
    for options in ("start_s=2400", "start_s=-1", "hold=2"):
        with pytest.raises(InvalidInput, match=r"start_s lies in 0\.\.2400 and hold is 0 or 1"):
            load_served(f"servegen:{folder}?{options}")
    servegen_folder(tmp_path, ROWS[:3], number=1)
    with pytest.raises(InvalidInput, match="differ in number or length"):
        load_served(f"servegen:{folder}")
    (tmp_path / "chunk-1-trace.csv").write_text("\n".join(ROWS))
    (tmp_path / "chunk-1-dataset.json").unlink()
    with pytest.raises(InvalidInput, match=r"chunk-1-dataset.json': an object of periods"):
        load_served(f"servegen:{folder}")
