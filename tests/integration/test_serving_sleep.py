"""A real instance sleeps: its memory is seen to fall from outside, it wakes for the next request in the same process, and its
answers are those from before, token by token."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("zmq")

from tierline.core.request import ImageSpan, Picture, Request, Sampling
from tierline.deployment import build_recorded
from tierline.presets import PRESETS, Choice
from tierline.runtime.serving_record import replay_record
from tierline.testing.daemon import wait_until
from tierline.testing.serving_processes import Deployment, Questions, deployed, is_alive, rss_bytes

KV_TOKEN_BYTES = 2 * 4 * 2 * 64 * 4  # keys and values of four layers with two heads of 64 in fp32
TOKENS, COUNT = 800, 16
IMAGE_TOKENS, PLACEHOLDER = 64, 5


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> str:
    """`coupled` with instances only for requests that are there."""
    scale = Choice("demand", {"target": 1e6, "patience_ns": 3_000_000_000, "start_s": 0.0, "wake_s": 0.0})
    quick = replace(PRESETS["coupled"], name="quick", scale=scale, elastic={"cool_down_ns": 0})
    monkeypatch.setitem(PRESETS, "quick", quick)
    return "quick"


def made_up() -> Questions:
    """Long prompts that begin differently, some with a picture. What is right is what is answered first."""
    rng = random.Random(5)
    requests, pictures = [], {}
    for number in range(COUNT):
        prompt = [rng.randrange(16, 1000) for _ in range(TOKENS)]
        images: tuple[ImageSpan, ...] = ()
        if number % 4 == 0:
            name = f"picture{number}"
            prompt[10 : 10 + IMAGE_TOKENS] = [PLACEHOLDER] * IMAGE_TOKENS
            images = (ImageSpan(name, 10, IMAGE_TOKENS),)
            pictures[name] = Picture(name, 112, 112, rng.randbytes(112 * 112 * 3))
        sampling = Sampling(12, temperature=0.0, ignore_eos=True)
        requests.append(Request(f"q{number}", tuple(prompt), sampling, images))
    return Questions("tiny-vlm", tuple(requests), pictures, {})


def answered(deployment: Deployment, questions: Questions) -> dict[str, tuple[int, ...]]:
    answers = deployment.run(questions)
    assert answers.errors == {} and len(answers.tokens) == COUNT
    return answers.tokens


def state(deployment: Deployment) -> str:
    return str(deployment.slots["i0"]["state"]) if "i0" in deployment.slots else "gone"


def counted(deployment: Deployment, key: str) -> int:
    return int(deployment.generator.status()["counts"].get(key, 0))


def test_memory_is_given_up_and_answers_after_it_are_those_before(policy: str, tmp_path: Path) -> None:
    questions, record = made_up(), tmp_path / "record.jsonl"
    options = {"policy": policy, "instances": 1, "limits": (0, 1), "kv_bytes": 80_000_000, "record": record}
    with deployed("tiny-vlm", "", **options) as deployment:
        pid = deployment.pid("i0")
        fresh = rss_bytes(pid)
        first = answered(deployment, questions)
        used = rss_bytes(pid)
        encoded, hits = deployment.total("encoded_images"), deployment.total("prefix_hits")
        arena = COUNT * TOKENS * KV_TOKEN_BYTES
        assert used - fresh > 0.8 * arena, "the prompts fill the arena"
        assert encoded == COUNT // 4

        wait_until(lambda: state(deployment) == "asleep", "it sleeps")
        asleep = rss_bytes(pid)
        assert used - asleep > 0.8 * arena, (fresh, used, asleep)
        assert is_alive(pid) and asyncio.run(deployment.generator.health()) == ""
        metrics = deployment.generator.metrics_text()
        assert 'tierline:instance_state{instance="i0",state="asleep"} 1' in metrics
        assert "tierline:instance_sleeps_total 1" in metrics

        assert answered(deployment, questions) == first
        assert deployment.pid("i0") == pid and counted(deployment, "instance_wakes") == 1
        assert rss_bytes(pid) - asleep > 0.8 * arena, "it computed them again"
        assert deployment.total("encoded_images") == 2 * encoded and deployment.total("prefix_hits") == hits

        wait_until(lambda: state(deployment) == "asleep", "it sleeps again")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: state(deployment) == "gone" and not deployment.pid("i0"), "nobody takes its place")
        assert answered(deployment, questions) == first
        assert deployment.pid("i0") not in (0, pid) and counted(deployment, "instances_started") == 1

    replayed = replay_record(record, build_recorded)
    assert (replayed.differences, replayed.first) == (0, "") and replayed.events > 100
