"""`tierline serve`: what is refused before anything starts, and what is handed to the process that serves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Outcome

Tierline = Callable[..., Outcome]

for _name in ("torch", "transformers", "zmq", "PIL", "msgspec"):
    pytest.importorskip(_name)


class Started(Exception):
    """The serving process would have been started with this command."""


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def execv(path: str, command: list[str]) -> None:
        raise Started(path, command)

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.delenv("TIERLINE_API_KEY", raising=False)


def order(tierline: Tierline, *arguments: str) -> dict[str, object]:
    with pytest.raises(Started) as caught:
        tierline("serve", *arguments)
    path, command = caught.value.args
    assert path == sys.executable and command[1:4] == ["-P", "-m", "tierline.server.openai"]
    with open(int(command[4]), "rb") as pipe:
        found: dict[str, object] = json.loads(pipe.read())
    return found


def test_keys_are_in_no_argument(tierline: Tierline) -> None:
    with pytest.raises(Started) as caught:
        tierline("serve", "--api-key", "a-secret")
    _, command = caught.value.args
    assert "a-secret" not in " ".join(command)
    os.close(int(command[4]))


def test_help_teaches(tierline: Tierline) -> None:
    answer = tierline("serve", "--help")
    assert answer.code == 0
    for word in ("tierline serve tiny-vlm", "--roles", "--instances", "--routing", "--kv-memory", "--api-key", "EPD"):
        assert word in answer.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--roles", "X"], "groups of E, P and D are needed"),
        (["--roles", "E,P"], "no instance may do D"),
        (["--roles", "E,P,D", "--instances", "2"], "do not agree"),
        (["--instances", "-1"], "1 or more is allowed"),
        (["--instances", "65"], "64 at most"),
        (["--policy", "adaptiv"], "did you mean 'adaptive'"),
        (["--policy", "static:2P2D"], "no instance may do E"),
        (["--policy", "static:PD+P,D"], "nobody of the multimodal group may do E"),
        (["--policy", "static:2E2P4D", "--instances", "2"], "policy 'static:2E2P4D' (8 instances) do not agree"),
        (["--policy", "adaptive", "--profile", "h100:Qwen2.5-VL-7B"], "of model 'Qwen2.5-VL-7B'"),
        (["--policy", "adaptive", "--slo", "ttft=fast"], "as in ttft=500ms"),
        (["--pace", "a100:Qwen2.5-VL-7B"], "no encoder was measured on a100"),
        (["--kv-memory", "lots"], "as in 512M"),
        (["--image-cache", "-1"], "as in 512M"),
        (["--batching", "sarathy"], "did you mean 'sarathi'"),
        (["--routing", "robin"], "round_robin"),
        (["--transfer", "mail"], "shm"),
        (["--max-batch-tokens", "-1"], "0 or more is allowed"),
        (["--max-sequences", "0"], "1 or more is allowed"),
        (["--max-requests", "0"], "1 or more is allowed"),
        (["--threads", "-1"], "0 or more is allowed"),
        (["--context", "-1"], "0 or more is allowed"),
        (["--port", "70000"], "--port"),
        (["--port", "http"], "--port"),
        (["--keys-file", "nowhere.json"], "there is no such file"),
        (["--speed", "3"], "--speed"),
    ],
)
def test_wrong_options_are_one_sentence_and_start_nothing(tierline: Tierline, arguments: list[str], said: str) -> None:
    assert said in tierline("serve", *arguments).sentence


def test_what_is_served_where(tierline: Tierline) -> None:
    found = order(tierline)
    assert (found["host"], found["port"], found["served_name"]) == ("127.0.0.1", 8000, "tiny-vlm")
    assert found["front"]["api_keys"] == [] and not found["front"]["images"]["remote"]  # type: ignore[index]


def test_options_reach_the_server(tierline: Tierline, tmp_path: Path) -> None:
    found = order(
        tierline, str(tmp_path), "--roles", "2EP,D", "--kv-memory", "1.5G", "--image-cache", "0", "--port", "0",
        "--api-key", "k1", "--api-key", "k2", "--rate", "60", "--image-host", "images.example", "--share",
    )  # fmt: skip
    made = found["deployment"]
    assert isinstance(made, dict)
    assert (made["model"], made["roles"], made["kv_bytes"]) == (str(tmp_path.resolve()), "2EP,D", 3 << 29)
    assert (made["pool_bytes"], made["pack"], found["served_name"]) == (0, False, tmp_path.name)
    front = found["front"]
    assert isinstance(front, dict)
    assert (front["api_keys"], front["requests_per_minute"]) == (["k1", "k2"], 60)
    assert front["images"] == {"remote": True, "hosts": ["images.example"]}


def test_the_help_names_every_policy_there_is(tierline: Tierline) -> None:
    from tierline.policies import batching, routing

    told = " ".join(tierline("serve", "--help").out.replace("│", " ").split())
    for name in (*batching.POLICIES, *routing.POLICIES):
        assert name in told
