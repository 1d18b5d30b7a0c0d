"""A record of a serving run: written as it goes, read back, replayed; what does not fit is told."""

import json

import pytest
from typer.testing import CliRunner

from tierline.cli.main import app
from tierline.core.errors import StateUnusable
from tierline.core.instance_actions import TellTokens
from tierline.core.request import ALL_ROLES, ImageSpan, Request, Sampling
from tierline.core.serving_events import InstanceJoined, InstanceSaid, RequestSubmitted, Tick
from tierline.deployment import DeploymentOptions, build_recorded, build_scheduler
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
