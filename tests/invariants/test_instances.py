"""Named invariants of the serving instances under random events. FakeCluster asserts them after every single event."""

import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from msgspec import structs

from tierline.core.instance_actions import InstanceAction, TellMoved, TellRoles
from tierline.core.request import ALL_ROLES, ImageSpan, Request, Role, Sampling
from tierline.schedulers import kv_blocks, sequence
from tierline.schedulers.embedding_pool import EmbeddingPool
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_images import EVICTED, Encoder
from tierline.schedulers.instance_moves import Moves
from tierline.schedulers.instance_state import InstanceLimits, InstanceState
from tierline.schedulers.kv_blocks import KvBlocks
from tierline.schedulers.sequence import Sequence
from tierline.testing.fake_engine import FakeEngine
from tierline.testing.instances import FakeCluster

PLACEHOLDER = 1000
IMAGES = {"a": 2, "b": 4, "c": 4, "d": 5}  # content hash -> tokens
TEXTS = ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), (1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 22, 23), (5,) * 12)
SOME_ROLES = [Role.parse(letters) for letters in ("EPD", "PD", "EP", "ED", "E", "P", "D")]


def made_up_request(rng, number):
    """Texts and images that others have too, in some order."""
    prompt, images = list(rng.choice(TEXTS)[: rng.randrange(1, 13)]), []
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        name = rng.choice(sorted(IMAGES))
        images.append(ImageSpan(name, len(prompt), IMAGES[name]))
        prompt += [PLACEHOLDER] * IMAGES[name]
        prompt += rng.choice(TEXTS)[: rng.choice([0, 0, 1, 5, 8])]
    if images and rng.random() < 0.3:  # an image at the very beginning
        cut = images[0].start
        prompt, images = prompt[cut:], [structs.replace(image, start=image.start - cut) for image in images]
    stops = tuple(range(3, 1000, rng.choice([5, 40, 400])))
    sampling = Sampling(
        max_tokens=rng.choice([1, 2, 6, 12, 30, 100]),
        min_tokens=rng.choice([0, 0, 1, 4]),
        seed=rng.randrange(2),
        stop_token_ids=rng.choice([(), stops]),
        ignore_eos=rng.random() < 0.5,
    )
    priority = rng.choice([0, 0, 0, 1, -1])
    return Request(f"r{number}", tuple(prompt), sampling, tuple(images), priority, arrived_ns=number // 2)


def made_up_cluster(rng):
    blocks, block_tokens = rng.choice([(9, 4), (12, 4), (12, 4), (16, 4), (30, 4), (20, 2), (40, 2), (60, 1)])
    limits = InstanceLimits(
        blocks=blocks,
        block_tokens=block_tokens,
        token_budget=rng.choice([3, 8, 40]),
        sequence_limit=rng.choice([2, 4, 16]),
        pool_bytes=rng.choice([0, 10, 20, 40]),
        context_tokens=rng.choice([30, 1000]),
        end_tokens=frozenset(range(0, 1000, 17)),
        prefix_caching=rng.random() < 0.9,
    )
    roles = rng.choice([
        [ALL_ROLES] * 2, [ALL_ROLES] * 3, [Role.parse("EP"), Role.parse("D")], [Role.parse("P"), Role.parse("ED")],
        [Role.parse("E"), Role.parse("P"), Role.parse("D"), Role.parse("PD")],
        [Role.parse("EPD"), Role.parse("P"), Role.parse("D")],
    ])  # fmt: skip
    policies = rng.choice([["sarathi"], ["sarathi"], ["fcfs"], ["fcfs", "sarathi"]])
    return FakeCluster(limits, roles, policies, seed=rng.randrange(10**6))


class Life:
    """What users, networks and devices do to a cluster; each choice by `rng`."""

    def __init__(self, rng):
        self.rng = rng
        self.cluster = made_up_cluster(rng)
        self.count = 0

    def submit(self):
        request = made_up_request(self.rng, self.count)
        self.count += 1
        self.cluster.serving.submit(request, announce=self.rng.random() < 0.5)

    def _answer(self):
        open_answers = [each for each in self.cluster.serving.answers.values() if not each.over]
        return self.rng.choice(open_answers) if open_answers else None

    def cancel(self):
        if answer := self._answer():
            self.cluster.serving.cancel(answer)

    def move(self):
        if answer := self._answer():
            self.cluster.serving.move(answer, self.rng.choice(sorted(self.cluster.schedulers)))

    def set_roles(self):
        serving = self.cluster.serving
        name = self.rng.choice(serving.awake)
        serving.set_roles(name, self.rng.choice(SOME_ROLES) | (ALL_ROLES & ~self._others(name)))

    def _others(self, name):
        """What the others may do."""
        others = Role(0)
        for other, own in self.cluster.serving.roles.items():
            others |= own if other != name else Role(0)
        return others

    def sleep(self):
        serving = self.cluster.serving
        able = [name for name in serving.awake if self._others(name) == ALL_ROLES]
        if able:
            serving.sleep(self.rng.choice(able))

    def wake(self):
        serving = self.cluster.serving
        if able := sorted(name for name, woken in serving.resting.items() if not woken):
            serving.wake(self.rng.choice(able), self.rng.choice(SOME_ROLES))

    def kill(self):
        name = self.rng.choice(sorted(self.cluster.schedulers))
        if self.cluster.serving.awake not in ([], [name]):
            self.cluster.kill(name, forget=self.rng.random() < 0.5)

    def encoder_fails(self):
        encodes = [each for each in self.cluster.pending() if each[0] == "encode"]
        if encodes:
            self.cluster.advance(*self.rng.choice(encodes), error=self.rng.choice([EVICTED, EVICTED, "broken"]))

    def advance(self, events):
        self.cluster.advance_some(events)


def live(seed, events=60, sleeps=False):
    """A whole life by a seed: the rules of the state machine below, without hypothesis."""
    life = Life(random.Random(seed))
    acts = [life.sleep, life.wake, life.wake] if sleeps else []
    acts += [life.submit] * 5 + [life.cancel, life.move, life.move, life.move, life.set_roles, life.encoder_fails]
    for number in range(events):
        life.rng.choice([*acts, *([life.kill] if number % 20 == 19 else [])])()
        life.advance(life.rng.choice([0, 1, 3, 10, 30]))
    life.cluster.drain()
    return life.cluster


class Instances(RuleBasedStateMachine):
    """Whatever happens, every answer is the right one, and nothing is left behind."""

    @initialize(rng=st.randoms(use_true_random=True))
    def start(self, rng):
        self.life = Life(rng)

    @rule()
    def submit(self):
        self.life.submit()

    @rule()
    def submit_two(self):
        self.life.submit()
        self.life.submit()

    @rule()
    def cancel(self):
        self.life.cancel()

    @rule()
    def move(self):
        self.life.move()

    @rule()
    def set_roles(self):
        self.life.set_roles()

    @rule()
    def sleep(self):
        self.life.sleep()

    @rule()
    def wake(self):
        self.life.wake()

    @rule()
    def encoder_fails(self):
        self.life.encoder_fails()

    @rule(events=st.integers(1, 40))
    def advance(self, events):
        self.life.advance(events)

    @rule(sure=st.integers(0, 5))
    def kill(self, sure):
        if not sure:
            self.life.kill()

    def teardown(self):
        if hasattr(self, "life"):
            self.life.cluster.drain()


Instances.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestInstances = Instances.TestCase


@pytest.mark.parametrize("seed", range(12))
def test_a_long_life(seed):
    live(seed, sleeps=seed >= 8)


def test_lives_see_every_action():
    seen = sum((live(seed, 25, sleeps=seed % 4 == 0).seen for seed in range(100, 124)), Counter())
    never = {"TellStatus", "TellTimes", "TellProgress"}  # asked for, or the engine's own
    assert {action.__name__ for action in get_args(InstanceAction)} - set(seen) == never


# --- the harness can fail: each of these is a bug that one could write


def a_move_that_only_reports_success(monkeypatch):
    def ask(self, event):
        if each := self._state.sequences.get(event.request_id):
            self._state.drop(each)
            self._state.out.append(TellMoved(event.request_id, "somebody"))

    monkeypatch.setattr(Moves, "ask", ask)


def an_import_that_writes_nothing(monkeypatch):
    def put(self, action, message):
        known = self.sequences[action.request_id]
        known.tokens = [*known.request.prompt, *message.event.made]

    monkeypatch.setattr(FakeEngine, "put", put)


def a_prefix_key_without_images(monkeypatch):
    key = kv_blocks.block_key
    monkeypatch.setattr(sequence, "block_key", lambda parent, tokens, images, first: key(parent, tokens, (), first))


def a_prefix_key_without_its_parent(monkeypatch):
    key = kv_blocks.block_key
    monkeypatch.setattr(sequence, "block_key", lambda parent, tokens, images, first: key(b"", tokens, images, first))


def a_role_change_that_does_nothing(monkeypatch):
    monkeypatch.setattr(
        InstanceScheduler,
        "_roles_set",
        lambda self, roles: self._state.out.append(TellRoles(roles, by_batch=True)),
    )


def a_position_before_its_image(monkeypatch):
    monkeypatch.setattr(Sequence, "ready_until", lambda self, position, pool: len(self.tokens))


def blocks_that_leak(monkeypatch):
    monkeypatch.setattr(KvBlocks, "release", lambda self, blocks: None)


def blocks_given_away_during_the_iteration(monkeypatch):
    vacate = InstanceState.vacate

    def at_once(self, each):
        each.in_step = 0
        vacate(self, each)

    monkeypatch.setattr(InstanceState, "vacate", at_once)


def an_image_given_up_in_use(monkeypatch):
    monkeypatch.setattr(EmbeddingPool, "use", lambda self, content_hash: None)


def images_never_asked_for_again(monkeypatch):
    ask = InstanceScheduler._ask_for_images
    monkeypatch.setattr(
        InstanceScheduler,
        "_ask_for_images",
        lambda self, each, expected=None: None if expected is None else ask(self, each, expected),
    )


def a_late_image_that_is_still_expected(monkeypatch):
    monkeypatch.setattr(Encoder, "_hear", lambda self, content_hash: None)


def a_preemption_that_the_engine_does_not_hear_of(monkeypatch):
    vacate = InstanceState.vacate

    def same_table(self, each):
        fresh = each.fresh
        vacate(self, each)
        each.fresh = fresh

    monkeypatch.setattr(InstanceState, "vacate", same_table)


def a_move_given_up_on_one_side_only(monkeypatch):
    monkeypatch.setattr(Moves, "cancelled", lambda self, event: None)


MUTATIONS = [
    a_move_that_only_reports_success, an_import_that_writes_nothing, a_prefix_key_without_images,
    a_prefix_key_without_its_parent, a_role_change_that_does_nothing, a_position_before_its_image, blocks_that_leak,
    blocks_given_away_during_the_iteration, an_image_given_up_in_use, images_never_asked_for_again,
    a_late_image_that_is_still_expected, a_preemption_that_the_engine_does_not_hear_of,
    a_move_given_up_on_one_side_only,
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_the_harness_catches(mutate, monkeypatch):
    mutate(monkeypatch)
    for seed in range(200):
        try:
            live(seed, 25)
        except (AssertionError, KeyError):
            return
    pytest.fail("no life went wrong")
