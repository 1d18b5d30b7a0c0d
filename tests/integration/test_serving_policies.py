"""Policies over real processes: groups and roles change by themselves under load and no answer changes; what a run decided is
decided again from its record; instances are started and ended. Roles are read from what the processes do."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("zmq")

from tierline.core.serving_actions import StartInstance, StopInstance
from tierline.deployment import build_recorded
from tierline.perf.serving_demand import StageRates
from tierline.runtime.serving_record import read_record, replay_record
from tierline.testing.checkpoints import CHECKPOINTS, build
from tierline.testing.daemon import wait_until
from tierline.testing.serving_processes import Deployment, Questions, deployed, is_alive

KIND = "llava-clip"
START = {each: getattr(StageRates(), each) for each in ("decode_base_s", "encode_base_s")}
"""Of a large device; nothing here takes just as long."""


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    import torch

    torch.set_num_threads(1)
    checkpoint = CHECKPOINTS[KIND]
    return Questions.make(build(KIND, tmp_path_factory.mktemp(KIND)), 30, checkpoint.placeholder, checkpoint.sizes)


def all_right(deployment: Deployment, questions: Questions) -> None:
    answers = deployment.run(questions)
    assert answers.errors == {}
    assert answers.wrong(questions) == []
    assert len(answers.tokens) == len(questions.requests)


@pytest.mark.parametrize(("policy", "instances", "changes"), [("emp", 5, 1), ("adaptive", 4, 0)])
def test_roles_change_by_themselves_and_the_record_replays(
    questions: Questions, tmp_path: Path, policy: str, instances: int, changes: int
) -> None:
    """A TPOT that no batch keeps has decode ask for instances, and the prompts that wait then take them back. `adaptive`
    changes roles only where enough load lasts, which these small questions need not be."""
    record = tmp_path / "record.jsonl"
    with deployed(
        questions.folder, "", policy=policy, instances=instances, slo="tpot=2ms", record=record
    ) as deployment:
        for _ in range(20):
            all_right(deployment, questions)
            status = deployment.generator.status()
            if deployment.total("role_switches") >= changes and all(
                status["rates"][each] != START[each] for each in START
            ):
                break
        metrics = deployment.generator.metrics_text()
        switches, encoded = deployment.total("role_switches"), deployment.total("encoded_images")
    assert status["counts"].get("role_changes", 0) >= changes and switches >= changes, status["decisions"]
    assert encoded
    assert not changes or any("s a token" in each["reason"] for each in status["decisions"])
    assert 'tierline:instance_group{instance="i0",group="' in metrics and "tierline:role_switches_total" in metrics

    assert all(status["rates"][each] != START[each] for each in START), "the instances told how long things take here"
    replayed = replay_record(record, build_recorded)
    assert (replayed.differences, replayed.first) == (0, "")
    assert replayed.events == sum(1 for _ in read_record(record)) > 150 and replayed.actions > 100


def test_an_instance_ends_when_told_and_another_takes_its_slot_when_asked(questions: Questions) -> None:
    with deployed(questions.folder, "2EPD") as deployment:
        instances, pid = deployment.generator.instances, deployment.pid("i1")
        instances.execute(StopInstance("i1", "a test"))
        wait_until(lambda: not is_alive(pid) and set(deployment.slots) == {"i0"}, "i1 is gone")
        all_right(deployment, questions)
        assert set(deployment.slots) == {"i0"} and not deployment.pid("i1"), "nobody was started in its place"
        for count in (2, 3):
            instances.execute(StartInstance("shared", "a test"))
            wait_until(lambda count=count: len(deployment.slots) == count, f"{count} instances are there")
        assert set(deployment.slots) == {"i0", "i1", "i2"} and deployment.pid("i1") not in (0, pid)
        before = {slot: each.get("steps", 0) for slot, each in deployment.slots.items()}
        all_right(deployment, questions)
        wait_until(
            lambda: all(each.get("steps", 0) > before[slot] for slot, each in deployment.slots.items()),
            "all three have worked",
        )
