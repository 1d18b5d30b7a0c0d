from __future__ import annotations

import pytest

from tierline.cli import space
from tierline.core.errors import InvalidInput


def test_a_grid_has_every_combination_and_the_last_parameter_changes_fastest() -> None:
    trials = space.grid({"lr": space.Choice((0.1, 0.01)), "batch": space.Choice((32, 64))})
    assert trials == [
        {"lr": 0.1, "batch": 32},
        {"lr": 0.1, "batch": 64},
        {"lr": 0.01, "batch": 32},
        {"lr": 0.01, "batch": 64},
    ]


def test_samples_stay_in_their_ranges_and_repeat_with_the_seed() -> None:
    kinds = {
        "lr": space.distribution("x", "log:1e-4..1"),
        "width": space.distribution("x", "int:1..8"),
        "deep": space.distribution("x", "logint:1..1000"),
        "act": space.distribution("x", "relu,tanh"),
        "drop": space.distribution("x", "0..0.5"),
    }
    trials = space.sample(kinds, 300, seed=3)
    assert trials == space.sample(kinds, 300, seed=3)
    assert trials != space.sample(kinds, 300, seed=4)
    assert {t["width"] for t in trials} == set(range(1, 9))
    assert {t["act"] for t in trials} == {"relu", "tanh"}
    assert all(1e-4 <= float(t["lr"]) <= 1 and 0 <= float(t["drop"]) <= 0.5 for t in trials)
    assert all(isinstance(t["deep"], int) and 1 <= t["deep"] <= 1000 for t in trials)
    # Drawn evenly in the logarithm: about half lies below the geometric middle, where a linear draw has a hundredth.
    assert 100 < sum(float(t["lr"]) < 1e-2 for t in trials) < 200


@pytest.mark.parametrize(
    "spec",
    ["log:1..", "log:0..1", "log:-1..1", "2..1", "int:0.5..3", "log:a..b", "0..inf", "a,,b", "1,1", "log:0.1"],
)
def test_a_spec_that_cannot_be_drawn_from_is_refused(spec: str) -> None:
    with pytest.raises(InvalidInput, match="--random lr"):
        space.distribution("--random lr", spec)


def test_a_command_is_filled_in_as_the_values_were_meant() -> None:
    template = ["train.py", "--lr={lr}", "--deep", "{deep}", '{"a": {{b}}}']
    space.check_template(template, ["lr", "deep"])
    assert space.fill(template, {"lr": 1e-05, "deep": True}) == (
        "train.py",
        "--lr=1e-05",
        "--deep",
        "true",
        '{"a": {b}}',
    )


def test_placeholders_and_parameters_must_match() -> None:
    with pytest.raises(InvalidInput, match="batch"):
        space.check_template(["{lr}", "{batch}"], ["lr"])
    with pytest.raises(InvalidInput, match="'batch' stands nowhere"):
        space.check_template(["{lr}"], ["lr", "batch"])


def test_a_grid_too_large_is_refused_before_it_is_made() -> None:
    many = space.Choice(tuple(range(1000)))
    with pytest.raises(InvalidInput, match="1000000000"):
        space.grid({"a": many, "b": many, "c": many})
