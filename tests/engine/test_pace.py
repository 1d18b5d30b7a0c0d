"""Paced instances: what is predicted is waited for, and nothing else. Time is told by hand, but for the encoder's thread."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from tierline.core.batch_view import Decodes
from tierline.core.encoder_kind import EncoderKind
from tierline.core.errors import InvalidInput
from tierline.core.instance_actions import RunStep, Tell, TellTokens
from tierline.core.instance_events import (
    EmbeddingsArrived,
    EncodeAsked,
    InstanceEvent,
    MoveTaken,
    RequestCancelled,
    RequestQueued,
    RoundArrived,
)
from tierline.core.request import Picture, Request, Sampling, TokenLogprob
from tierline.core.slo import Slo
from tierline.core.stage_times import BatchShape
from tierline.deployment import DeploymentOptions
from tierline.deployment import times_of as times_of_deployment
from tierline.engine.build import limits_of
from tierline.engine.encoder import Encoded, EncoderLane
from tierline.engine.instance import Instance, Payload
from tierline.engine.model import read_config
from tierline.engine.pace import LATE_NS, PacedDevice, PacedPort, shape_of
from tierline.engine.runner import Sampled
from tierline.engine.settings import InstanceSettings
from tierline.perf.device_sharing import Overlap
from tierline.perf.device_times import stage_times, times_of
from tierline.perf.serving_profile import (
    Linear,
    Preparation,
    Transfer,
)
from tierline.perf.stage_time_online import OnlineTimes
from tierline.policies.batching import make_batching
from tierline.policies.batching.slo_chunk import SloChunk
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_state import InstanceLimits
from tierline.testing.daemon import wait_until
from tierline.testing.profiles import MADE_UP

MS = 1_000_000
# An iteration takes 10 ms and 1 ms a token, an image 8 ms a position, a transfer 5 ms and 1 ms for each KV position.
TIMES = times_of(
    replace(
        MADE_UP,
        transfer=Transfer(0.005, 8000.0),
        linear=Linear(0.01, 0.001, 0.0, 10, 0.0, 0.0, 0.0, encode_s=0.0, patch_s=0.002),
        overlap=Overlap(
            ridge_tokens=1.0, encoder_arithmetic=1.0, encoder_bandwidth=0.0
        ),  # both at half speed beside each other
    )
)
PREPARED = times_of(replace(TIMES.profile, preparation=Preparation(0.1, 0.0)))


@dataclass
class Hand:
    now_ns: int = 1000 * MS

    def __call__(self) -> int:
        return self.now_ns


class Runner:
    """Draws token 7."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.steps = 0

    def add(self, request: Request) -> None:
        self.known.add(request.request_id)

    def drop(self, request_id: str) -> None:
        self.known.discard(request_id)

    def run(self, step: RunStep) -> list[Sampled]:
        self.steps += 1
        assert self.known.issuperset(chunk.request_id for chunk in step.chunks)
        return [Sampled(chunk.request_id, 7, None) for chunk in step.chunks if chunk.samples]


@dataclass
class Port:
    told: list[Tell] = field(default_factory=list)
    sent: list[tuple[str, InstanceEvent]] = field(default_factory=list)

    def send(self, peer: str, event: InstanceEvent, payload: Payload) -> None:
        self.sent.append((peer, event))

    def tell(self, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        self.told.append(message)

    @property
    def tokens(self) -> list[str]:
        return [each.request_id for each in self.told if isinstance(each, TellTokens) and each.tokens]


class Lane:
    def take(self) -> list[Any]:
        return []


def paced(hand: Hand) -> tuple[Instance, Runner, Port, InstanceScheduler]:
    scheduler = InstanceScheduler("i0", InstanceLimits(blocks=20, context_tokens=64), make_batching("sarathi"))
    runner, port, nothing = Runner(), Port(), None
    engine: Any = runner
    lane: Any = Lane()
    arena: Any = nothing
    return (
        Instance("i0", scheduler, engine, arena, lane, {}, port, PacedDevice(TIMES, hand)),
        runner,
        port,
        scheduler,
    )


def ask(name: str, tokens: int = 3, output: int = 2) -> RequestQueued:
    return RequestQueued(Request(name, tuple(range(1, tokens + 1)), Sampling(output, ignore_eos=True)), ())


# --- iterations


def test_tokens_are_told_when_their_time_is_over() -> None:
    hand = Hand()
    me, runner, port, scheduler = paced(hand)
    assert me.wait_ns() is None and not me.has_step
    me.deliver(ask("a"))
    assert me.has_step
    me.step()  # 3 tokens: 13 ms
    assert runner.steps == 1 and port.tokens == [] and not me.has_step and me.wait_ns() == 13 * MS
    hand.now_ns += 12 * MS
    me.step()
    assert runner.steps == 1 and port.tokens == [] and me.wait_ns() == MS
    hand.now_ns += 1 * MS
    assert me.wait_ns() == 0
    me.step()
    assert port.tokens == ["a"] and me.has_step and me.wait_ns() is None
    me.step()  # the decode: 11 ms, from the moment on when the prompt was over
    assert me.wait_ns() == 11 * MS
    hand.now_ns += 11 * MS
    me.step()
    assert port.tokens == ["a", "a"] and not me.has_step and scheduler.status().running == 0


def test_messages_are_heard_while_an_iteration_is_held() -> None:
    hand = Hand()
    me, runner, port, scheduler = paced(hand)
    me.deliver(ask("goes"))
    me.step()
    me.deliver(ask("comes"))
    me.deliver(RequestCancelled("goes"))
    assert scheduler.status().waiting == 1 and scheduler.status().running == 0
    me.step()
    assert runner.steps == 1 and not me.has_step, "the device is busy with an iteration that nobody waits for"
    hand.now_ns += 13 * MS
    me.step()
    assert port.tokens == [] and me.has_step
    me.step()
    hand.now_ns += 13 * MS
    me.step()
    assert port.tokens == ["comes"] and scheduler.status().free_blocks == scheduler.status().total_blocks - 1


@pytest.mark.parametrize(("late", "left"), [(0, 11 * MS), (MS, 10 * MS), (50 * MS, 11 * MS - LATE_NS)])
def test_an_iteration_that_follows_begins_when_the_one_before_should_have_ended(late: int, left: int) -> None:
    """A timer that wakes late by up to `LATE_NS` makes no device slower; a machine that is slower shows."""
    hand = Hand()
    me, _, _, _ = paced(hand)
    me.deliver(ask("a"))
    me.step()
    hand.now_ns += 13 * MS + late
    me.step()
    me.step()
    assert me.wait_ns() == left


def test_after_a_pause_nothing_is_made_good() -> None:
    hand = Hand()
    me, _, _, _ = paced(hand)
    me.deliver(ask("a", output=1))
    me.step()
    hand.now_ns += 14 * MS
    me.step()
    assert not me.has_step
    me.deliver(ask("b", output=1))
    me.step()
    assert me.wait_ns() == 13 * MS


def test_an_instance_learns_how_long_its_iterations_take() -> None:
    """The profile says 11 ms for what this runner does in no time: predictions fall, and the policy asks them again."""
    scheduler = InstanceScheduler("i0", InstanceLimits(blocks=200, context_tokens=2000), make_batching("sarathi"))
    engine: Any = Runner()
    nothing: Any = None
    learnt = OnlineTimes(TIMES)
    me = Instance("i0", scheduler, engine, nothing, nothing, {}, Port(), None, learnt)
    policy = SloChunk(learnt, Slo(tpot_ns=40 * MS), tpot_share=0.95, credit_s=0.0, least_tokens=16)
    assert policy._bearable(Decodes(1, 10), 0, 512, 1.0) == 16, "32 beside four decodes take 46 ms"
    me.deliver(ask("a", output=500))
    while me.has_step:
        me.step()
    assert learnt.iteration_s(BatchShape(decodes=1, decode_context=10)) < 0.5 * 0.011 and learnt.version > 0
    assert policy._bearable(Decodes(1, 10), 0, 512, 1.0) > 16


def test_the_shape_of_an_iteration() -> None:
    hand = Hand()
    me, _, _, _ = paced(hand)
    steps: list[RunStep] = []
    runner: Any = me._runner
    runner.run = lambda step: steps.append(step) or [Sampled(each.request_id, 7, None) for each in step.chunks]
    me.deliver(ask("a", tokens=5))
    me.step()
    hand.now_ns += 100 * MS
    me.step()
    me.deliver(ask("b", tokens=1))  # one token, and yet a prompt
    me.step()
    hand.now_ns += 100 * MS
    me.step()
    me.step()
    assert [shape_of(step) for step in steps] == [
        BatchShape(chunks=((5, 0),)),
        BatchShape(decodes=1, decode_context=5),
        BatchShape(chunks=((1, 0),)),
    ]


# --- an image beside an iteration


def test_an_image_and_an_iteration_slow_each_other() -> None:
    hand = Hand()
    device = PacedDevice(TIMES, hand)
    device.begin(BatchShape(decodes=10, decode_context=10), follows=False)  # 20 ms
    hand.now_ns += 10 * MS
    device.begin_image(1)  # 8 ms; both at half speed from now on: iteration at 10 + 20, image at 10 + 16
    assert device.left_ns() == 20 * MS
    hand.now_ns += 16 * MS
    device.end_image()  # does not wait; 2 ms of the iteration are left
    assert device.left_ns() == 2 * MS
    hand.now_ns += 2 * MS
    assert device.left_ns() == 0
    device.end()


def test_an_image_gets_the_device_back_when_the_iteration_is_over() -> None:
    hand = Hand()
    device = PacedDevice(TIMES, hand)
    device.begin_image(4)  # 32 ms
    device.begin(BatchShape(decodes=10, decode_context=10), follows=False)  # 20 ms, 40 at half speed
    hand.now_ns += 40 * MS
    assert device.left_ns() == 0
    device.end()  # 12 ms of the image are left
    hand.now_ns += 12 * MS
    device.end_image()
    device.begin(BatchShape(decodes=10, decode_context=10), follows=False)
    assert device.left_ns() == 20 * MS


def test_preparing_takes_its_time_where_it_stalls_the_device() -> None:
    hand = Hand()
    for prepares, left in ((False, 16 * MS), (True, 116 * MS)):
        device = PacedDevice(PREPARED, hand, prepares=prepares)
        device.begin_image(2)
        assert device._image is not None and device._image.end_ns - hand.now_ns == left


def test_an_image_has_as_many_patches_as_the_played_model_merges() -> None:
    hand = Hand()
    for merged in (1, 4):
        device = PacedDevice(times_of(replace(TIMES.profile, patches_per_token=merged)), hand)
        device.begin_image(10)
        assert device._image is not None and device._image.end_ns - hand.now_ns == 20 * merged * MS


@dataclass
class HandLane:
    """Images are done when the test says so; small letters for their beginning, large ones for their end."""

    log: list[str]
    under_way: str = ""
    done: list[Encoded] = field(default_factory=list)

    def submit(self, picture: Picture) -> None:
        assert not self.under_way
        self.under_way = picture.content_hash
        self.log.append(self.under_way)

    def finish(self) -> None:
        if self.under_way:
            self.log.append(self.under_way.upper())
            self.done.append(Encoded(self.under_way, torch.zeros(1, 4)))
            self.under_way = ""

    def take(self) -> list[Encoded]:
        found, self.done = self.done, []
        return found


@pytest.mark.parametrize(
    ("encoder", "order"), [("overlapped", "(x)Xy()Y()()"), ("inline", "()xX()yY()()"), ("blocking", "()xXyY()()()")]
)
def test_what_two_images_hold_up_that_come_in_the_first_iteration_of_four(encoder: EncoderKind, order: str) -> None:
    hand, log = Hand(), list[str]()
    scheduler = InstanceScheduler("i0", InstanceLimits(blocks=20, context_tokens=64), make_batching("sarathi"))
    lane, nothing = HandLane(log), None
    engine: Any = Runner()
    images: Any = lane
    arena: Any = nothing
    me = Instance("i0", scheduler, engine, arena, images, {}, Port(), PacedDevice(TIMES, hand), encoder=encoder)
    me.deliver(ask("text", output=4))
    while me.has_step or lane.under_way:
        if me.has_step:
            log.append("(")
            me.step()
            if log == ["("]:
                for name in ("x", "y"):
                    me.deliver(EncodeAsked(name, "i9"), picture=Picture(name, 1, 1, b"abc"))
            hand.now_ns += 100 * MS
            log.append(")")
            me.step()
        lane.finish()
        me.collect()
    assert "".join(log) == order and scheduler.status().encoded_images == 2


class Family:
    """Embeddings at once; no layout, as of a model without one."""

    takes_images = False
    embedding = torch.nn.Embedding(1, 1)

    class config:  # noqa: N801
        model_type = "llama"

    folder = ""

    def encode(self, pictures: list[Picture]) -> list[Any]:
        return [torch.zeros(2, 4) for _ in pictures]


def test_closing_does_not_wait_for_an_image() -> None:
    """Its time is over in a quarter of an hour."""
    family: Any = Family()
    device = PacedDevice(TIMES)
    lane = EncoderLane(family, lambda: None, device)
    lane._places = lambda picture: 100_000  # type: ignore[method-assign]
    lane.submit(Picture("h", 1, 1, b"abc"))
    device.close()
    lane.close()
    assert len(lane.take()) <= 1


def test_an_image_is_not_done_before_its_time() -> None:
    family: Any = Family()
    hand = Hand()
    device = PacedDevice(TIMES, hand)
    woken: list[int] = []
    lane = EncoderLane(family, lambda: woken.append(hand.now_ns), device)
    lane._places = lambda picture: 2  # type: ignore[method-assign]
    lane.submit(Picture("h", 1, 1, b"abc"))
    wait_until(lambda: device._image is not None, "the image is being encoded")
    hand.now_ns += 15 * MS
    with device._changed:
        device._changed.notify_all()
    time.sleep(0.02)
    assert woken == [] and lane.take() == []
    hand.now_ns += MS
    with device._changed:
        device._changed.notify_all()
    wait_until(lambda: bool(woken), "the image is done")
    assert [each.content_hash for each in lane.take()] == ["h"]
    lane.close()


# --- transfers


def test_payloads_leave_when_they_would_be_through() -> None:
    hand, port = Hand(), Port()
    paced_port = PacedPort(port, TIMES, 16, hand)
    kv = torch.zeros(100, dtype=torch.uint8)
    first = RoundArrived("r", "i0", 0, 10, (), False)
    assert paced_port.left_ns() is None
    paced_port.send("i1", first, kv)  # 5 + 10 ms
    paced_port.send("i1", MoveTaken("r", "i0"), None)  # behind it
    paced_port.send("i2", MoveTaken("s", "i0"), None)  # has nothing before it
    assert port.sent == [("i2", MoveTaken("s", "i0"))] and paced_port.left_ns() == 15 * MS
    image = EmbeddingsArrived("h", 64)
    paced_port.send(
        "i2", image, torch.zeros(64, dtype=torch.uint8)
    )  # 4 positions of 4 bytes: 5 + 2 ms, over the same link
    hand.now_ns += 14 * MS
    paced_port.flush()
    assert len(port.sent) == 1
    hand.now_ns += MS
    paced_port.flush()
    assert port.sent[1:] == [("i1", first), ("i1", MoveTaken("r", "i0"))] and paced_port.left_ns() == 7 * MS
    hand.now_ns += 7 * MS
    paced_port.flush()
    assert port.sent[-1] == ("i2", image) and paced_port.left_ns() is None
    paced_port.tell(TellTokens("r", 0, (1,)), ())
    assert port.told == [TellTokens("r", 0, (1,))]


# --- what is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pace": "h10:Qwen2.5-VL-7B"}, "unknown device 'h10'"),
        ({"pace": "h100:Qwen9"}, "unknown model 'Qwen9'"),
        ({"pace": "nowhere.toml"}, "there is no such file"),
        ({"pace": "h100:Qwen2.5-VL-7B", "pace_positions": 0}, "0 positions for one"),
        ({"pace": "h100:Qwen2.5-VL-7B", "pace_stretch": 0.0}, "stretched by 0.0"),
        ({"pace_positions": 2}, "--pace DEVICE:MODEL is needed"),
        ({"profile": "h100:Qwen2.5-VL-7B"}, "of model 'Qwen2.5-VL-7B', and model 'tiny-vlm' is used"),
    ],
)
def test_what_cannot_be_played(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        times_of_deployment(DeploymentOptions(**options))


def test_limits_are_those_of_what_is_played() -> None:
    config = read_config("tiny-vlm")
    settings = InstanceSettings("i0", "tiny-vlm", "", "", "", "", pace="h100:LLaVA-1.5-7B", pace_positions=4)
    limits = limits_of(settings, config, torch.bfloat16, torch.device("cpu"))
    times = stage_times("h100:LLaVA-1.5-7B")
    assert limits.blocks == times.kv_tokens // 4 // 16 and limits.token_budget == 2048 // 4
    # As many positions of images as fit into the image cache there, each of ours standing for four.
    ours = 2 * config.get_text_config().hidden_size
    assert limits.pool_bytes // ours == settings.pool_bytes // times.embedding_token_bytes // 4
