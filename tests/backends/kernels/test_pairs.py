"""Pairs under policies: every cell is there, figures are relative to what they say, and processes change nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("tierline._native", reason="the native part is not built (scripts/native)")

from tierline.backends.kernels import pairs
from tierline.backends.kernels.pairs import Comparison, compare
from tierline.cli.main import main
from tierline.core.errors import UnknownName

SMALL = Comparison(("gemm+norm",), ("interference", "sequential", "plain"), ("strict", "latency"))


def test_twelve_pairs_and_all_policies() -> None:
    assert len(pairs.pair_names()) == len(set(pairs.pair_names())) == 12
    assert pairs.policy_names()[:6] == ("interference", "sequential", "free", "orion", "reef", "tgs")
    assert pairs.policy_names()[-1] == "plain"


def test_every_cell_is_there_whatever_the_number_of_processes() -> None:
    done: list[str] = []
    rows = compare(SMALL, 1, done.append)
    assert [(row.policy, row.mode) for row in rows] == [
        ("interference", "strict"),
        ("interference", "latency"),
        ("sequential", ""),
        ("plain", ""),
    ]
    assert len(done) == pairs.count_runs(SMALL) == 6  # each program alone, too
    assert rows == compare(SMALL, 2)


def test_figures_are_relative_to_alone_and_to_sequential() -> None:
    by_policy = {row.policy: row for row in compare(SMALL)}
    sequential = by_policy["sequential"]
    assert sequential.over_sequential == 1.0
    for row in by_policy.values():
        assert row.total == pytest.approx(row.high_rate + row.best_effort_rate)
        assert row.over_sequential == pytest.approx(row.total / sequential.total)
        assert 0 <= row.high_rate < 1.05 and 0 <= row.best_effort_rate < 1.05


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="pair 'gemm'"):
        compare(Comparison(("gemm",), ("free",)))
    with pytest.raises(UnknownName, match="kernel policy 'fifo'"):
        compare(Comparison(SMALL.pairs, ("fifo",)))
    with pytest.raises(UnknownName, match="simulated device 'h300'"):
        compare(Comparison(SMALL.pairs, ("free",), device="h300"), workers=2)


def test_the_command_prints_and_writes_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "found.json", tmp_path / "sums.png"
    asked = [
        "simulate",
        "kernels",
        "--pair",
        "gemm+norm",
        "--policy",
        "interference",
        "--workers",
        "1",
    ]
    assert main([*asked, "--mode", "strict", "--json", str(file), "--picture", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "simulated device h200" in shown and "interference (strict)" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(file.read_text())
    assert found["simulated_device"] == "h200" and len(found["rows"]) == 1
    assert found["truth_sha256"] == pairs.truth_hash()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--pair", "gem"], "unknown pair 'gem'"),
        (["--policy", "fifo"], "unknown kernel policy 'fifo'"),
        (["--mode", "loose"], "unknown mode 'loose'"),
        (["--profiles", "noisy:2"], "profiles are exact"),
        (["--device", "b200"], "unknown simulated device 'b200'"),
        (["--picture", "x.png"], "--picture shows one run"),
        (["--json", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_the_command_refuses_in_one_sentence(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "kernels", "--workers", "1", *options]) == 2
    assert told in capsys.readouterr().err


def test_the_command_says_what_is_missing_without_the_native_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tierline._native", None)
    assert main(["simulate", "kernels"]) == 2
    assert "native" in capsys.readouterr().err
