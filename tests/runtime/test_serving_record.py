"""A record of a serving run: written as it goes, read back, replayed; what does not fit is told."""

import json

import pytest
from typer.testing import CliRunner

from tierline.cli.main import app
from tierline.core.errors import StateUnusable
from tierline.core.instance_actions import TellStatus, TellTimes, TellTokens
from tierline.core.request import ALL_ROLES, ImageSpan, Request, Sampling
from tierline.core.serving_actions import QueueAttempt
from tierline.core.serving_events import InstanceJoined, InstanceSaid, RequestAbandoned, RequestSubmitted, Tick
from tierline.core.stage_times import BatchShape
from tierline.deployment import DeploymentOptions, build_recorded, build_scheduler
from tierline.perf.fitted_rates import FittedRates, parts_of, scaled
from tierline.perf.serving_demand import StageRates
from tierline.runtime.serving_record import ServingRecord, read_record, replay_record, setting_of

SETTING = {"policy": "adaptive", "instances": 4, "slo": "ttft=1s,tpot=20ms"}


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "run.jsonl"
    scheduler = build_scheduler(DeploymentOptions(**SETTING))
    writes = ServingRecord(path, SETTING)
    for number, event in enumerate(
        [
            *(InstanceJoined(f"i{at}", ALL_ROLES) for at in range(4)),
            RequestSubmitted(Request("r", tuple(range(500)), Sampling(9), (ImageSpan("x", 3, 40),)), ("x",)),
            InstanceSaid("i0", TellTokens("r#1", 0, (7,))),
            Tick(),
        ]
    ):
        writes.append([(number, event, scheduler.handle(number, event))])
    writes.close()
    return path


def test_what_was_decided_is_decided_again(record):
    result = replay_record(record, build_recorded)
    assert (result.events, result.differences, result.first) == (7, 0, "") and result.actions >= 3
    assert setting_of(record) == SETTING
    done = CliRunner().invoke(app, ["replay", str(record)])
    assert done.exit_code == 0 and "7 events replayed" in done.output and "no difference" in done.output


def test_another_decision_is_told_and_where(record):
    text = record.read_text()
    assert '"instance":"i0"' in text
    record.write_text(text.replace('"instance":"i0"', '"instance":"i3"'))
    result = replay_record(record, build_recorded)
    assert result.differences == result.effects == 1 and "event 5 (RequestSubmitted), action 1" in result.first
    assert CliRunner().invoke(app, ["replay", str(record)]).exit_code == 1


def test_another_reason_is_a_difference_without_effect(record):
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    for line in lines[1:]:
        for action in line["actions"]:
            if action["type"] == "QueueAttempt":
                action["reason"] = "another"
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = replay_record(record, build_recorded)
    assert (result.differences, result.effects) == (1, 0)


def slow(number):
    """What an instance tells that takes three times as long as is assumed, after `number` iterations and as many images."""
    fitted, true = FittedRates(), scaled(StageRates(), (3.0,) * 5)
    for each in range(number):
        batch = BatchShape(((200 + each % 300, 0),) if each % 3 else (), 1 + each % 20, 500 * (1 + each % 7))
        fitted.observe(batch, sum(parts_of(true, batch)))
        fitted.observe_image(600, true.image_s(600))
    return TellTimes(fitted.news())


def test_rates_follow_what_instances_tell_and_a_replay_goes_the_same_way(tmp_path):
    """An instance that takes three times as long gets fewer prompts at a time; in the record as in the run."""
    path, now = tmp_path / "run.jsonl", 0
    setting = {"policy": "adaptive", "slo": "ttft=1s,tpot=20ms"}
    scheduler = build_scheduler(DeploymentOptions(**setting))
    record = ServingRecord(path, setting)

    def happens(event):
        nonlocal now
        now += 1_000_000
        actions = scheduler.handle(now, event)
        record.append([(now, event, actions)])
        return actions

    def queued(name):
        """How many of six prompts an idle instance gets at once; then all of them are called off."""
        asked = [Request(f"{name}{each}", tuple(range(500)), Sampling(9)) for each in range(6)]
        placed = [isinstance(action, QueueAttempt) for each in asked for action in happens(RequestSubmitted(each))]
        for each in asked:
            happens(RequestAbandoned(each.request_id))
        return sum(placed)

    happens(InstanceJoined("i0", ALL_ROLES))
    happens(InstanceSaid("i0", TellStatus(0, 0, 0, 0, 1000, 1000, 0, 0, 0, 0, 0, 1)))
    assert (queued("a"), scheduler.rates) == (3, StageRates())
    happens(InstanceSaid("i0", slow(40)))
    happens(InstanceSaid("i0", slow(2000)))
    assert queued("b") == 2
    record.close()
    rates, plain = scheduler.rates, StageRates()
    for tokens in (200, 1000):
        assert rates.prefill_s(tokens) == pytest.approx(3 * plain.prefill_s(tokens), rel=0.1)
        assert rates.decode_s(20, 50 * tokens) == pytest.approx(3 * plain.decode_s(20, 50 * tokens), rel=0.1)
        assert rates.image_s(tokens) == pytest.approx(3 * plain.image_s(tokens), rel=0.1)
    assert scheduler._routing.rates is rates, "its policies know"
    again = []
    result = replay_record(path, lambda found: again.append(build_recorded(found)) or again[0])
    assert (result.differences, result.first, result.events) == (0, "", 28) and again[0].rates == rates


def test_rates_of_a_profile_are_where_following_begins():
    scheduler = build_scheduler(DeploymentOptions(policy="adaptive", pace="h100:Qwen2.5-VL-7B"))
    rates = scheduler.rates
    assert rates != StageRates()
    scheduler.handle(0, InstanceJoined("i0", ALL_ROLES))
    assert scheduler.rates is rates
    scheduler.handle(1, InstanceSaid("i0", TellTimes((2.0, 0.0, 0.0, 3.0, 0.0))))
    assert scheduler.rates == scaled(rates, (2.0, 1.0, 1.0, 3.0, 1.0))


def test_a_last_line_that_was_cut_off_is_left_out(record):
    whole = len(list(read_record(record)))
    record.write_text(record.read_text()[:-20])
    assert len(list(read_record(record))) == whole - 1


@pytest.mark.parametrize("text", ["", "no JSON\n", "[1]\n", '{"version": "1"}\n', '{"setting": {}}\n{"at": 1}\n'])
def test_what_is_no_record_is_refused_with_a_sentence(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(StateUnusable):
        replay_record(path, build_recorded)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(StateUnusable, match="cannot be written"):
        ServingRecord(tmp_path / "none" / "x.jsonl", {})
