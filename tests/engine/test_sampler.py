"""The sampler against Transformers' logits processors, and what its draws may depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tierline.core.request import Sampling  # noqa: E402
from tierline.engine import sampler  # noqa: E402
from tierline.engine.sampler import Row, draw, uniform  # noqa: E402
from tierline.schedulers.instance_state import InstanceLimits  # noqa: E402
from tierline.testing.checkpoints import CONTEXT_TOKENS  # noqa: E402
from tierline.testing.layouts import Cluster, Disturbance  # noqa: E402
from tierline.testing.mixed_requests import Reference  # noqa: E402

if TYPE_CHECKING:
    from tests.engine.conftest import Case

VOCABULARY = 40
DRAWS = 20_000
PROMPT, MADE = (3, 3, 7, 11), (5, 5, 5, 9, 11)


def some_logits(rows: int = 1, seed: int = 0, scale: float = 1.5) -> torch.Tensor:
    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * scale


def row(made: tuple[int, ...] = (), banned: tuple[int, ...] = (), **settings: Any) -> Row:
    return Row(Sampling(max_tokens=99, **settings), PROMPT, made, banned)


def drawn(logits: torch.Tensor, made: tuple[int, ...] = (), **settings: Any) -> Counter[int]:
    """How often each token is drawn, with as many seeds."""
    rows = [row(made, seed=seed, **settings) for seed in range(DRAWS)]
    tokens, _ = draw(logits.expand(DRAWS, -1), rows)
    return Counter(tokens)


def chi_square(counts: Counter[int], expected: torch.Tensor) -> float:
    """By how many standard deviations the counts are farther from `expected` than chance has them; below 4 is well."""
    places = (expected * DRAWS >= 5).nonzero().flatten().tolist()
    statistic = sum((counts[at] - expected[at].item() * DRAWS) ** 2 / (expected[at].item() * DRAWS) for at in places)
    freedom = max(1, len(places) - 1)
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


CUTS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "temperature": ({"temperature": 0.7}, [transformers.TemperatureLogitsWarper(0.7)]),
    "hot": ({"temperature": 2.5}, [transformers.TemperatureLogitsWarper(2.5)]),
    "top-k": ({"top_k": 5}, [transformers.TopKLogitsWarper(5)]),
    "top-k of one": ({"top_k": 1}, [transformers.TopKLogitsWarper(1)]),
    "top-p": ({"top_p": 0.7}, [transformers.TopPLogitsWarper(0.7)]),
    "tiny top-p": ({"top_p": 1e-6}, [transformers.TopPLogitsWarper(1e-6)]),
    "min-p": ({"min_p": 0.2}, [transformers.MinPLogitsWarper(0.2)]),
    "all": (
        {"temperature": 1.3, "top_k": 12, "top_p": 0.8, "min_p": 0.1},
        [
            transformers.TemperatureLogitsWarper(1.3),
            transformers.TopKLogitsWarper(12),
            transformers.TopPLogitsWarper(0.8),
            transformers.MinPLogitsWarper(0.1),
        ],
    ),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_draws_follow_transformers_distribution(name: str, seed: int) -> None:
    settings, processors = CUTS[name]
    logits = some_logits(seed=seed)
    expected = transformers.LogitsProcessorList(processors)(torch.tensor([PROMPT]), logits.clone())[0].softmax(dim=-1)
    counts = drawn(logits, **settings)
    assert set(counts) <= set(expected.nonzero().flatten().tolist()), "a token that is cut off was drawn"
    assert set(counts) >= set((expected > 1e-3).nonzero().flatten().tolist())
    assert chi_square(counts, expected) < 4


def test_repetition_penalty_is_transformers() -> None:
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    for seed in range(20):
        logits = some_logits(seed=seed)
        expected = processor(torch.tensor([[*PROMPT, *MADE]]), logits.clone())
        assert draw(logits, [row(MADE, temperature=0.0, repetition_penalty=1.7)])[0] == [int(expected.argmax())]
        drawn_expected = expected[0].softmax(dim=-1)
        if seed < 2:
            assert chi_square(drawn(logits, MADE, repetition_penalty=1.7), drawn_expected) < 4


def test_presence_and_frequency_count_the_output_alone() -> None:
    logits = some_logits()
    expected = logits[0].clone()
    for token, times in Counter(MADE).items():
        expected[token] -= 0.8 + 0.5 * times
    counts = drawn(logits, MADE, presence_penalty=0.8, frequency_penalty=0.5)
    assert chi_square(counts, expected.softmax(dim=-1)) < 4
    assert chi_square(counts, logits[0].softmax(dim=-1)) > 10
    at_the_start = draw(logits, [row(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)])[0]
    assert at_the_start == [int(logits.argmax())]


def test_logit_bias() -> None:
    logits = some_logits()
    order = logits[0].argsort(descending=True).tolist()
    banned = {"logit_bias": ((order[0], -100.0),), "temperature": 0.0}
    assert draw(logits, [row(**banned)])[0] == [order[1]]
    assert draw(logits, [row(logit_bias=((order[-1], 100.0),), temperature=0.0)])[0] == [order[-1]]
    expected = logits[0].clone()
    expected[order[3]] += 2.0
    assert chi_square(drawn(logits, logit_bias=((order[3], 2.0),)), expected.softmax(dim=-1)) < 4


def test_no_end_before_min_tokens() -> None:
    logits = some_logits()
    best, second = logits[0].topk(2).indices.tolist()
    short = {"min_tokens": 3, "temperature": 0.0}
    assert draw(logits, [row((8, 8), (best,), **short)])[0] == [second]
    assert draw(logits, [row((8, 8, 8), (best,), **short)])[0] == [best]
    rows = [row((8, 8), (best, second), min_tokens=3, seed=seed) for seed in range(500)]
    assert not {best, second} & set(draw(logits.expand(500, -1), rows)[0])


def test_greedy_needs_no_seed_and_changes_no_logits() -> None:
    logits = some_logits(3)
    before = logits.clone()
    mixed = [row(temperature=0.0), row(MADE, temperature=0.0, repetition_penalty=9.0), row(logit_bias=((1, 50.0),))]
    draw(logits, mixed)
    assert torch.equal(logits, before)
    for dtype in (torch.float32, torch.bfloat16):
        rows = [row(temperature=0.0, seed=seed) for seed in range(3)]
        assert draw(logits.to(dtype), rows)[0] == logits.to(dtype).argmax(dim=-1).tolist()


def test_logprobs_are_the_models_own() -> None:
    logits = some_logits(2)
    settings = {"temperature": 0.3, "top_k": 2, "repetition_penalty": 3.0, "logit_bias": ((1, 5.0),)}
    tokens, logprobs = draw(logits, [row(MADE, logprobs=4, **settings), row(logprobs=0)])
    expected = logits.log_softmax(dim=-1)
    for place, (token, found) in enumerate(zip(tokens, logprobs, strict=True)):
        assert found is not None
        assert found.logprob == pytest.approx(float(expected[place, token]), abs=1e-6)
    assert logprobs[0] is not None and logprobs[1] is not None
    values, places = expected[0].topk(4)
    assert [token for token, _ in logprobs[0].top] == places.tolist()
    assert [value for _, value in logprobs[0].top] == pytest.approx(values.tolist(), abs=1e-6)
    assert logprobs[1].top == ()
    assert draw(logits, [row(), row(temperature=0.0)])[1] == [None, None]


def test_a_draw_depends_on_seed_index_and_logits_alone() -> None:
    count = 64
    logits = some_logits(count)
    rows = [
        row(MADE[: place % 5], seed=place, top_p=0.5 + place / 200, temperature=place % 3 / 2, top_k=place % 4 * 5)
        for place in range(count)
    ]
    together, _ = draw(logits, rows)
    alone = [draw(logits[place : place + 1], [rows[place]])[0][0] for place in range(count)]
    assert together == alone
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled, _ = draw(logits[order], [rows[place] for place in order])
    assert shuffled == [together[place] for place in order]


def test_seeds_and_indices_give_independent_numbers() -> None:
    by_seed = [uniform(seed, 0) for seed in range(4000)]
    by_index = [uniform(5, index) for index in range(4000)]
    for numbers in (by_seed, by_index):
        assert all(0 <= number < 1 for number in numbers)
        tenths = Counter(int(number * 10) for number in numbers)
        assert sum((tenths[place] - 400) ** 2 / 400 for place in range(10)) < 27.9  # 99.9 % of chance
        pairs = Counter((int(a * 4), int(b * 4)) for a, b in pairwise(numbers))
        assert sum((pairs[a, b] - 250) ** 2 / 250 for a in range(4) for b in range(4)) < 37.7
    assert len(set(by_seed) | set(by_index)) == 7999  # (5, 0) is in both
    logits = some_logits()
    made = [draw(logits, [row((1,) * index, seed=7)])[0][0] for index in range(50)]
    assert made == [draw(logits, [row((2,) * index, seed=7)])[0][0] for index in range(50)]
    assert made != [draw(logits, [row((1,) * index, seed=8)])[0][0] for index in range(50)]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_draw_kept_tokens(monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    monkeypatch.setattr(sampler, "uniform", lambda seed, index: number)
    for seed in range(50):
        logits = some_logits(seed=seed)
        order = logits[0].argsort(descending=True).tolist()
        for top_k in (1, 3, 7):
            (token,), _ = draw(logits, [row(top_k=top_k)])
            assert token == (order[0] if number == 0 else order[top_k - 1])


def test_the_largest_hash_is_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest:
        def digest(self) -> bytes:
            return b"\xff" * 8

    monkeypatch.setattr(sampler.hashlib, "blake2b", lambda *args, **kwargs: Largest())
    assert uniform(0, 0) < 1


# --- in an instance


def limits() -> InstanceLimits:
    return InstanceLimits(blocks=400, token_budget=64, context_tokens=CONTEXT_TOKENS)


@pytest.mark.parametrize("kind", ["llama", "llava-clip"])
def test_the_same_tokens_are_drawn_after_migrations_and_role_changes(case: Callable[[str], Case], kind: str) -> None:
    made = case(kind)
    requests = [
        structs.replace(
            each,
            sampling=replace(each.sampling, temperature=0.9, top_p=0.9, seed=place, logprobs=2, repetition_penalty=1.1),
        )
        for place, each in enumerate(made.requests)
    ]
    answers, told = [], []
    for layout, disturbance in (("EPD", Disturbance()), ("P|D", Disturbance(move=0.3, roles=0.05))):
        cluster = Cluster(made.families, layout, limits(), seed=11)
        answers.append(cluster.run(requests, made.pictures, disturbance))
        cluster.settle()
        assert cluster.faults(answers[-1]) == []
        told.append(cluster.logprobs)
        cluster.close()
    assert cluster.witness.counts["moves"] >= 5
    assert answers[0] == answers[1]
    assert answers[0] != {name: answer.tokens for name, answer in made.answers.items()}, "they are not the greedy ones"
    for request_id, tokens in answers[0].items():
        assert set(told[0][request_id]) == set(told[1][request_id]) == set(range(len(tokens)))
        for index, first in told[0][request_id].items():
            assert first.logprob == pytest.approx(told[1][request_id][index].logprob, abs=1e-3)


def test_penalties_and_logprobs_are_those_of_transformers_generate(case: Callable[[str], Case]) -> None:
    made = case("llama")
    model = Reference(made.folder).model
    settings = {"repetition_penalty": 1.4, "min_tokens": 6, "temperature": 0.0, "logprobs": 3}
    requests, wanted, logprobs = [], {}, {}
    for each in made.requests[:20]:
        stops = tuple(range(0, 256, 5))
        result = model.generate(
            torch.tensor([each.prompt]),
            attention_mask=torch.ones((1, len(each.prompt)), dtype=torch.long),
            max_new_tokens=12,
            min_new_tokens=6,
            repetition_penalty=1.4,
            do_sample=False,
            eos_token_id=[*stops, model.generation_config.eos_token_id],
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.cat(result.scores).topk(2).values
        if float((best[:, 0] - best[:, 1]).min()) < 1e-3:
            continue
        wanted[each.request_id] = tuple(result.sequences[0, len(each.prompt) :].tolist())
        logprobs[each.request_id] = torch.cat(result.logits).log_softmax(dim=-1)
        sampling = replace(each.sampling, max_tokens=12, stop_token_ids=stops, **settings)
        requests.append(structs.replace(each, sampling=sampling))
    cluster = Cluster(made.families, "EPD", limits(), seed=2)
    assert cluster.run(requests, {}) == wanted
    cluster.close()
    assert len({len(tokens) for tokens in wanted.values()}) > 3, "some stop early"
    assert min(len(tokens) for tokens in wanted.values()) > 6
    for request_id, expected in logprobs.items():
        for index, token in enumerate(wanted[request_id]):
            found = cluster.logprobs[request_id][index]
            assert found.logprob == pytest.approx(float(expected[index, token]), abs=1e-3)
            assert [alternative for alternative, _ in found.top] == expected[index].topk(3).indices.tolist()
