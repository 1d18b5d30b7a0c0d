"""`tierline top URL` and `tierline why NAME URL|FILE`: a served model as a reader sees it, over the real front door."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Outcome

for _name in ("PIL", "httptools", "msgspec"):
    pytest.importorskip(_name)

Tierline = Callable[..., Outcome]
NOW_NS = 1_000_000_000_000
NS = 1_000_000_000


def told() -> dict[str, Any]:
    """What a deployment of three instances says of itself; i10 has not told of its load."""
    load = {"running": 3, "waiting": 0, "held": 0, "free_blocks": 75, "total_blocks": 100, "preemptions": 0, "steps": 9}
    base = {"pid": 1, "state": "awake", "encoding": 0, "images": 4, "role_switches": 0, "switch_seconds": 0.0}
    return {
        "now_ns": NOW_NS,
        "deployment": {"model": "tiny-vlm", "policy": "adaptive", "slo": "ttft=2s", "pace": "h100:Qwen2.5-VL-7B"},
        "instances": [
            base | {"name": "i10", "roles": "EPD", "group": "shared", "reason": "", "prefill_tokens": 0, "decoding": 0},
            base | load | {"name": "i0", "roles": "EP", "group": "text", "reason": "text is more", "prefill_tokens": 321,
                           "decoding": 2, "role_switches": 1, "switch_seconds": 0.25},
            base | load | {"name": "i2", "roles": "D", "group": "multimodal", "reason": "", "prefill_tokens": 0,
                           "decoding": 5},
        ],
        "live": 9, "waiting": 2, "counts": {"instances_lost": 1}, "image_queries": 0, "image_hits": 0,
        "decisions": [
            {"at_ns": NOW_NS - 70 * NS, "subject": "i0", "what": "roles EP", "reason": "prompts wait"},
            {"at_ns": NOW_NS - 5 * NS, "subject": "i0", "what": "group text", "reason": "text is more"},
            {"at_ns": NOW_NS - 1 * NS, "subject": "i7", "what": "stop", "reason": "nobody needs it"},
        ],
    }  # fmt: skip


REQUESTS = [
    {"request_id": "r1", "client_id": "abc/1", "prompt_tokens": 30, "images": 1, "output_tokens": 9, "age_s": 70.0,
     "first_s": 0.25, "took_s": 1.5, "end": "stop", "instance": "", "stage": ""},
    {"request_id": "r2", "client_id": "abc/1", "prompt_tokens": 31, "images": 0, "age_s": 2.0, "first_s": None,
     "took_s": None, "end": "", "instance": "i3", "stage": "prefill"},
]  # fmt: skip


@pytest.fixture
def server() -> Iterator[str]:
    from tierline.core.request import ServedModel, is_called
    from tierline.server.openai import FrontOptions
    from tierline.testing.front_door import Live
    from tierline.testing.instant import ByteText, InstantGenerator

    class Telling(InstantGenerator):
        def status(self) -> dict[str, Any]:
            return told()

        def find(self, name: str) -> list[dict[str, Any]]:
            return [each for each in REQUESTS if is_called(name, each["request_id"], each["client_id"])]

    text = ByteText(ServedModel("instant", 8192, True, 258, (256,), max_images=32))
    with Live(Telling(), text, FrontOptions()) as live:
        yield live.root


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_top_shows_instances_clients_and_decisions(tierline: Tierline, server: str) -> None:
    import httpx

    for tokens in (1, 9):
        body = {"model": "instant", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": tokens}
        assert httpx.post(f"{server}/v1/chat/completions", json=body).status_code == 200
    text = tierline("top", server).out
    assert "instant · policy adaptive · SLO ttft=2s · plays h100:Qwen2.5-VL-7B · 3 instances" in text
    assert "9 requests live, 2 of them wait for room · 1 instance lost" in text
    shown = rows(text)
    names = [row[0] for row in shown if row and row[0] in ("i0", "i2", "i10")]
    assert names == ["i0", "i2", "i10"], "in the order of their slots"
    assert ["i0", "text", "EP", "321", "0", "2", "25%", "1", "text", "is", "more"] in shown
    assert ["i10", "shared", "EPD", "0", "0", "0", "-", "0", "-"] in shown
    assert ["1s", "i7", "stop", "nobody", "needs", "it"] in shown
    assert text.index("nobody needs it") < text.index("prompts wait"), "the newest first"
    (texts,) = [row for row in shown if row[:1] == ["text"] and row[1].endswith("/s")]
    assert float(texts[1].removesuffix("/s")) > 0 and "-" not in texts[3:]
    (images,) = [row for row in shown if row[:2] == ["with", "images"]]
    assert images[2:] == ["0.00/s", "0.00/s", "-", "-", "-", "-"]
    assert tierline("top", f"{server}/v1", "--once").out.splitlines()[0] == text.splitlines()[0]
    as_json = json.loads(tierline("top", server, "--json").out)
    assert [each["name"] for each in as_json["instances"]] == ["i10", "i0", "i2"]
    assert as_json["front"]["last_minute"]["text"]["ttft"]["p50"] > 0


def test_top_as_it_looks_on_a_terminal(server: str) -> None:
    from rich.console import Console

    from tierline.cli.serving_status import ServingClient
    from tierline.cli.top_serving import picture

    with ServingClient(server) as client:
        status = client.status()
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(picture(status))
    text = console.export_text()
    for words in ("policy adaptive", "TTFT P50", "i10", "multimodal", "nobody needs it", "Roles: E encodes"):
        assert words in text


def test_why_tells_of_an_instance(tierline: Tierline, server: str) -> None:
    text = tierline("why", "i0", server).out
    assert text.startswith("i0 may encode and prefill for text requests: 321 prompt tokens wait")
    assert "1 role switch (the last took 250ms until its first batch)" in text
    assert rows(text)[-2:] == [
        ["1m10s", "roles", "EP", "prompts", "wait"],
        ["5s", "group", "text", "text", "is", "more"],
    ]
    assert "prompts wait" not in tierline("why", "i0", server, "-n", "1").out
    assert tierline("why", "i7", server).out.startswith("i7 has left.")
    assert "Nothing was decided" in tierline("why", "i2", server).out
    as_json = json.loads(tierline("why", "i0", server, "--json").out)
    assert as_json["instance"]["group"] == "text" and len(as_json["decisions"]) == 2
    assert "'r9' is no instance of" in tierline("why", "r9", server).sentence


def test_why_tells_of_a_request_by_its_own_and_its_client_s_name(tierline: Tierline, server: str) -> None:
    ended, going, *_ = tierline("why", "chatcmpl-abc/1", server).out.splitlines()
    assert ended == (
        "r1 (abc/1): a prompt of 30 tokens and 1 image, came 1m10s ago; first token after 250ms, 9 tokens made; it ended "
        "with 'stop' after 1.50s."
    )
    assert going == "r2 (abc/1): a prompt of 31 tokens, came 2s ago; its prompt is at i3."
    assert tierline("why", "r2", server).out.splitlines()[0] == going
    assert [each["request_id"] for each in json.loads(tierline("why", "abc/1", server, "--json").out)["requests"]] == [
        "r1",
        "r2",
    ]


def test_what_cannot_be_shown_is_one_sentence(tierline: Tierline, server: str, tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    for command in (("top", nobody), ("why", "i0", nobody)):
        assert "`tierline serve` starts one" in tierline(*command).sentence
    assert "is no address" in tierline("top", "127.0.0.1:8000").sentence
    assert "--sweep" in tierline("top", server, "--sweep", "s").sentence
    assert "neither an address" in tierline("why", "i0", str(tmp_path / "none")).sentence
    assert "no server of `tierline serve`" in tierline("top", f"{server}/elsewhere").sentence


def test_why_reads_a_record_for_requests_and_instances(tierline: Tierline, tmp_path: Path) -> None:
    from tierline.core.instance_actions import TellPrefilled, TellTokens
    from tierline.core.request import ImageSpan, Request, Role, Sampling
    from tierline.core.serving_events import InstanceJoined, InstanceLost, InstanceSaid, RequestSubmitted, RolesAsked
    from tierline.deployment import DeploymentOptions, build_scheduler
    from tierline.runtime.serving_record import ServingRecord

    path = tmp_path / "run.jsonl"
    setting = {"roles": "EP,D"}
    scheduler = build_scheduler(DeploymentOptions(**setting))
    record = ServingRecord(path, setting)
    events = [
        InstanceJoined("i0", Role.parse("EP")),
        InstanceJoined("i1", Role.parse("D")),
        RequestSubmitted(Request("r1", tuple(range(50)), Sampling(9), (ImageSpan("x", 3, 40),)), ("x",)),
        InstanceSaid("i0", TellTokens("r1#1", 0, (7,))),
        InstanceSaid("i0", TellPrefilled("r1#1")),
        InstanceSaid("i0", TellTokens("r1#1", 1, (8,), finish="stop")),
        RolesAsked("i1", Role.parse("PD")),
        InstanceLost("i1", "it was killed"),
        RequestSubmitted(Request("r2", tuple(range(9)), Sampling(9), client_id="abc")),
        RequestSubmitted(Request("r3", tuple(range(9)), Sampling(9), client_id="abc")),
        InstanceSaid("i0", TellTokens("r3#3", 0, (7,), finish="stop")),
    ]
    for number, event in enumerate(events):
        record.append([(number * NS, event, scheduler.handle(number * NS, event))])
    record.close()
    request = tierline("why", "r1", str(path)).out
    assert [row[:2] for row in rows(request)[1:]] == [
        ["2.000s", "came"],
        ["2.000s", "prefill"],
        ["2.000s", "encode"],
        ["3.000s", "first"],
        ["4.000s", "move"],
        ["5.000s", "stop"],
    ]
    assert "a prompt of 50 tokens, 1 image" in request and "i0 to i1" in request and "after 2 tokens" in request
    instance = tierline("why", "i1", str(path)).out
    assert [row[1] for row in rows(instance)[1:]] == ["joined", "roles", "lost"]
    assert "it was killed" in instance
    assert len(json.loads(tierline("why", "i1", str(path), "--json", "-n", "2").out)["decisions"]) == 2
    for name in ("abc", "cmpl-abc"):
        both = tierline("why", name, str(path)).out
        assert [row[1:3] for row in rows(both)[1:]] == [
            ["r2", "came"],
            ["r2", "prefill"],
            ["r3", "came"],
            ["r3", "prefill"],
            ["r3", "first"],
            ["r3", "stop"],
        ]
    own = tierline("why", "r3", str(path)).out
    assert [row[1] for row in rows(own)[1:]] == ["came", "prefill", "first", "stop"] and "calls it abc" in own
    assert "no decision about 'r9'" in tierline("why", "r9", str(path)).sentence
    path.write_text("nothing\n")
    assert "no record" in tierline("why", "r1", str(path)).sentence


def test_the_last_minute_forgets_what_is_older() -> None:
    from tierline.server.openai.last_minute import REMEMBERED, WINDOW_S, LastMinute

    now = [100.0]
    minute = LastMinute(lambda: now[0])
    now[0] = 110.0
    minute.ended(False, 0.5, 0.01, True)
    minute.ended(True, float("nan"), float("nan"), False)
    found = minute.told()
    assert found["seconds"] == 10.0
    assert found["text"] == {
        "answered_per_s": 0.1, "failed_per_s": 0.0, "ttft": {"p50": 0.5, "p99": 0.5}, "tpot": {"p50": 0.01, "p99": 0.01},
    }  # fmt: skip
    assert found["images"]["failed_per_s"] == 0.1 and found["images"]["ttft"]["p50"] is None
    now[0] = 110.0 + WINDOW_S + 1.0
    found = minute.told()
    assert found["seconds"] == WINDOW_S and found["text"]["answered_per_s"] == 0.0
    for _ in range(REMEMBERED + 1):
        now[0] += 0.001
        minute.ended(False, 0.5, 0.01, True)
    found = minute.told()
    assert found["seconds"] == pytest.approx(0.001 * REMEMBERED)
    assert found["text"]["answered_per_s"] == pytest.approx(1000)


def test_who_sleeps_is_shown_to_sleep(tierline: Tierline, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status = told()
    status["instances"][0] |= {"roles": "", "state": "waking"}
    status["instances"][2] |= {"roles": "", "state": "asleep", "free_blocks": 0, "total_blocks": 0}
    monkeypatch.setattr(f"{__name__}.told", lambda: status)
    text = tierline("top", server).out
    assert "3 instances · 1 of them asleep" in text
    states = {row[0]: row[2] for row in rows(text) if row and row[0] in ("i0", "i2", "i10")}
    assert states == {"i0": "EP", "i2": "sleeps", "i10": "wakes"}
    assert tierline("why", "i2", server).out.startswith("i2 sleeps: its weights are in host memory")
    assert tierline("why", "i10", server).out.startswith("i10 is being woken")


def test_why_reads_sleep_and_waking_from_a_record(tierline: Tierline, tmp_path: Path) -> None:
    from tierline.core.instance_actions import TellAsleep, TellAwake
    from tierline.core.request import ALL_ROLES, Role
    from tierline.core.serving_actions import SetRoles, SleepInstance, WakeInstance
    from tierline.core.serving_events import InstanceSaid, Tick
    from tierline.runtime.serving_record import ServingRecord

    path = tmp_path / "run.jsonl"
    record = ServingRecord(path, {"policy": "adaptive"})
    record.append([(0, Tick(), [SetRoles("i1", Role(0), "too many"), SleepInstance("i1", "too many")])])
    record.append([(NS, InstanceSaid("i1", TellAsleep()), [])])
    record.append([(2 * NS, Tick(), [WakeInstance("i1", "shared", "requests wait", ALL_ROLES)])])
    record.append([(3 * NS, InstanceSaid("i1", TellAwake(ALL_ROLES)), [])])
    record.append([(3 * NS, InstanceSaid("i2", TellAsleep()), [])])
    record.close()
    shown = [" ".join(row) for row in rows(tierline("why", "i1", str(path)).out)[1:]]
    assert [each.split(" i1 ")[0] for each in shown] == [
        "0.000s roles -", "0.000s sleep", "1.000s asleep", "2.000s wake as EPD", "3.000s awake",
    ]  # fmt: skip
