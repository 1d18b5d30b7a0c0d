"""`tierline load` from the outside: against the real front door with an instant generator, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tierline.testing.scripted_server import Scripted, error, streamed, words

from .conftest import Outcome

Tierline = Callable[..., Outcome]

for _name in ("PIL", "httptools", "msgspec"):
    pytest.importorskip(_name)

WORKLOAD = "synthetic?rate=200&requests=40&images=1.5&text_tokens=60&output_tokens=20&image_tokens=60&repeat=0.2"


@pytest.fixture
def front() -> Iterator[str]:
    """The real front door on a port, an instant generator behind it."""
    from tierline.core.request import ServedModel
    from tierline.server.openai import FrontOptions
    from tierline.testing.front_door import Live
    from tierline.testing.instant import ByteText, InstantGenerator

    text = ByteText(ServedModel("instant", 8192, True, 258, (256,), max_images=32))
    with Live(InstantGenerator(), text, FrontOptions()) as server:
        yield server.root


def test_a_load_on_the_real_front_door(tierline: Tierline, front: str, tmp_path: Path) -> None:
    saved = tmp_path / "requests.jsonl"
    done = tierline("load", front, WORKLOAD, "--slo", "ttft=60s,tpot=5s", "--json", "--save", str(saved))
    assert done.code == 0, done.err
    told = json.loads(done.out)
    report, server = told["report"], told["server"]
    assert report["all"]["requests"] == report["all"]["finished"] == 40 and report["all"]["errors"] == []
    assert report["text"]["requests"] + report["images"]["requests"] == 40 and report["images"]["requests"] > 5
    assert report["all"]["attainment"] == 1.0 and report["all"]["goodput_per_s"] > 0
    assert (server["model"], server["counted"]) == ("instant", "by the server's /tokenize")
    assert server["takes_ignore_eos"] and server["image_tokens"] == 16 and server["unit_px"] == 0
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    assert len(lines) == 40 and [line["request"] for line in lines] == list(range(40))
    for line in lines:
        assert line["outcome"] == "finished" and line["output_tokens"] == line["wanted_tokens"]
        assert line["due_s"] <= line["sent_s"] <= line["first_token_s"] <= line["finished_s"]
        text = line["prompt_tokens"] - 16 * line["images"]
        assert abs(text - max(line["text_tokens"], 25)) <= 0.2 * line["text_tokens"] + 20  # about the wanted tokens


def test_the_table_shows_text_and_images_apart(tierline: Tierline) -> None:
    with Scripted() as server:
        done = tierline("load", server.url, WORKLOAD, "--slo", "ttft=60s,image=90s", "--devices", "2", "--salt", "mine")
    assert done.code == 0, done.err
    header, *rows = done.out.splitlines()
    for word in ("SENT", "OK", "TTFT P50", "TPOT P50", "E2E P50", "IN SLO", "GOODPUT"):
        assert word in header
    assert [row.split()[0] for row in rows[:3]] == ["all", "text", "images"]
    assert "Goodput within TTFT 60.0s (90.0s with images) and TPOT 50ms:" in done.out and "/s a device" in done.out
    assert "32 x 32 px are one" in done.out and "salt mine" in done.out


def test_errors_are_told_by_kind_with_a_reason(tierline: Tierline) -> None:
    turns = iter([error(503, "Too much waits.")] * 3 + [streamed(*words(2, usage=(50, 2)))] * 5)
    with Scripted(chat=lambda body: next(turns)) as server:
        done = tierline("load", server.url, "synthetic?images=0&requests=8&rate=100")
    assert done.code == 0, done.err
    assert "3 x refused: Too much waits." in done.out
    all_row = next(line for line in done.out.splitlines() if line.startswith("all")).split()
    assert all_row[1:3] == ["8", "5"]
    assert not any(line.startswith("images") for line in done.out.splitlines())


def test_what_is_not_known_is_null_in_json(tierline: Tierline) -> None:
    with Scripted(chat=lambda body: error(503, "No.")) as server:
        done = tierline("load", server.url, "synthetic?images=0&requests=3&rate=100", "--json")
    told = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["report"]["all"]["ttft"]["p50"] is None and told["report"]["slo"] is None
    assert told["report"]["all"]["errors"] == [["refused", 3]]


def test_the_warm_up_is_left_out(tierline: Tierline) -> None:
    with Scripted() as server:
        source = "synthetic?images=0&requests=30&rate=100"
        whole = json.loads(tierline("load", server.url, source, "--json").out)
        late = json.loads(tierline("load", server.url, source, "--json", "--warmup", "0.1").out)
        assert whole["report"]["all"]["requests"] == 30 > late["report"]["all"]["requests"] > 0
        assert late["report"]["from_ns"] == 100_000_000
        assert "after the warm-up of 50 s" in tierline("load", server.url, source, "--warmup", "50").sentence


def test_help_teaches(tierline: Tierline) -> None:
    done = tierline("load", "--help")
    assert done.code == 0
    for word in ("servegen:DIR", "synthetic", "--slo", "--max-in-flight", "--save", "--speed", "mm_share"):
        assert word in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "synthetic"], "'nowhere' is no address of a server"),
        (["http://127.0.0.1:9", "synthetik"], "unknown serving workload 'synthetik': did you mean 'synthetic'?"),
        (["http://127.0.0.1:9", "azure:nowhere.csv"], "none at 'nowhere.csv'"),
        (["http://127.0.0.1:9", "synthetic", "--slo", "fast"], "as in ttft=500ms,tpot=50ms"),
        (["http://127.0.0.1:9", "synthetic", "--speed", "0"], "speed and timeout must be above 0"),
        (["http://127.0.0.1:9", "synthetic", "--save", "no/such/folder/file"], "its folder does not exist"),
        (["http://127.0.0.1:9", "synthetic", "--limit", "-1"], "limit"),
    ],
)
def test_mistakes_are_one_sentence(tierline: Tierline, arguments: list[str], said: str) -> None:
    assert said in tierline("load", *arguments).sentence


def test_nobody_answers(tierline: Tierline) -> None:
    with Scripted() as server:
        url = server.url
    done = tierline("load", url, "synthetic?requests=3")
    assert done.code == 3 and "No server answers at" in done.err and done.err.count("\n") == 1
