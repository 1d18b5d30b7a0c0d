"""The real serving scheduler over fake instances under random events. ServedCluster asserts the invariants all the time."""

import random
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tierline.core.request import ALL_ROLES, ImageSpan, Request, Role, Sampling
from tierline.core.serving_actions import ServingAction
from tierline.core.slo import Slo
from tierline.presets import Choice, preset_of
from tierline.schedulers.instance_images import EVICTED
from tierline.schedulers.instance_state import InstanceLimits
from tierline.schedulers.serving import ServingScheduler
from tierline.schedulers.serving_attempts import Attempts
from tierline.schedulers.serving_elastic import Elastic
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_images import ImageDispatch
from tierline.schedulers.serving_moves import Moves
from tierline.schedulers.serving_state import Server
from tierline.testing.serving import ServedCluster

IMAGES = {"a": 2, "b": 4, "c": 4, "d": 5}  # content hash -> tokens
TEXTS = ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), (1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 22, 23), (5,) * 12)
SOME_ROLES = [Role.parse(letters) for letters in ("EPD", "EPD", "PD", "EP", "ED", "E", "P", "D")]
LAYOUTS = ("", "EPD", "EPD EPD", "EP D", "P ED", "E P D", "E P D D", "EPD P D", "E E P P D D")


def made_up_request(rng, number):
    prompt, images = list(rng.choice(TEXTS)[: rng.randrange(1, 13)]), []
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        name = rng.choice(sorted(IMAGES))
        images.append(ImageSpan(name, len(prompt), IMAGES[name]))
        prompt += [1000] * IMAGES[name]
        prompt += rng.choice(TEXTS)[: rng.choice([0, 0, 1, 5])]
    sampling = Sampling(rng.choice([1, 2, 6, 12, 30]), seed=rng.randrange(2), ignore_eos=rng.random() < 0.8)
    return Request(f"r{number}", tuple(prompt), sampling, tuple(images), rng.choice([0, 0, 0, 1]), number // 2)


def made_up_cluster(rng):
    blocks, block_tokens = rng.choice([(9, 4), (12, 4), (12, 4), (30, 4), (20, 2), (60, 1)])
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
    roles = [Role.parse(letters) for letters in rng.choice(LAYOUTS).split()]
    return ServedCluster(limits, roles, [rng.choice(["sarathi", "fcfs"])], seed=rng.randrange(10**6))


def preset_cluster(name, rng):
    """One of 1 to 8 instances under a preset, whose times are short: a message takes a nanosecond."""
    short = {"period_ns": 20, "react_ns": 10, "cool_down_ns": 60, "start_timeout_ns": 500}
    target = rng.choice([0.05, 0.7, 100.0])  # of a demand that never fades: or nobody is wanted but for who waits
    times = {"patience_ns": 60, "stop_after_ns": rng.choice([150, 10**9]), "start_s": 0.0, "wake_s": 0.0}
    scale = Choice("demand", {"target": target, **times})
    least = rng.choice([0, 0, 1, 4])
    preset = replace(preset_of(name), elastic={**short, "min_instances": least, "max_instances": 6}, scale=scale)
    slots = preset.layout(rng.choice([1, 2, 3, 5, 5, 8]))
    # A TPOT that a batch of any size breaks, or none: so stages are given to and fro.
    slo = Slo(ttft_ns=rng.choice([100, 10**9]), tpot_ns=rng.choice([9_000_000, 10**9]))
    limits = InstanceLimits(
        blocks=rng.choice([12, 30]), block_tokens=4, token_budget=rng.choice([8, 40]),
        sequence_limit=rng.choice([2, 4, 16]), pool_bytes=rng.choice([0, 20, 40]),
        context_tokens=1000, end_tokens=frozenset(range(0, 1000, 17)),
    )  # fmt: skip

    class Cluster(ServedCluster):
        def make_scheduler(self):
            return preset.make_scheduler({f"i{at}": slot for at, slot in enumerate(slots)}, slo=slo)

    batching = [lambda: preset.make_batching(slo=slo)]
    return Cluster(limits, [slot.roles for slot in slots], batching, seed=rng.randrange(10**6))


class Life:
    """What users, networks and devices do to a cluster; each choice by `rng`."""

    def __init__(self, rng, make_cluster=made_up_cluster):
        self.rng = rng
        self.cluster = make_cluster(rng)
        self.serving = self.cluster.serving
        self.count = 0

    def submit(self):
        self.serving.submit(made_up_request(self.rng, self.count), announce=self.rng.random() < 0.5)
        self.count += 1

    def _client(self):
        some = [each for each in self.serving.answers.values() if not each.over]
        return self.rng.choice(some) if some else None

    def _server(self):
        return self.rng.choice([*self.serving.roles, "nobody"])

    def abandon(self):
        if client := self._client():
            self.serving.cancel(client)

    def move(self):
        if client := self._client():
            self.serving.move(client, self._server())

    def set_roles(self):
        self.serving.set_roles(self._server(), self.rng.choice(SOME_ROLES))

    def join(self):
        if len(self.cluster.schedulers) < 6:
            self.cluster.join(self.rng.choice(SOME_ROLES))

    def kill(self):
        if self.cluster.schedulers:
            name = self.rng.choice(sorted(self.cluster.schedulers))
            self.cluster.kill(name, forget=self.rng.random() < 0.5, last_words=self.rng.choice([None, 0, 1, 3, 9]))

    def encoder_fails(self):
        encodes = [each for each in self.cluster.pending() if each[0] == "encode"]
        if encodes:
            self.cluster.advance(*self.rng.choice(encodes), error=self.rng.choice([EVICTED, EVICTED, "broken"]))

    def words_get_slow(self):
        self.cluster.slow = self._server()

    def advance(self, events):
        self.cluster.advance_some(events)

    def quiet(self):
        """Time passes: policies look, and what they decide is done."""
        for _ in range(self.rng.choice([4, 12])):
            self.cluster.advance("tick", "", "")
            self.cluster.advance_some(3)

    def end(self):
        together = Role(0)
        for roles in self.serving.roles.values():
            together |= roles
        if self.serving.scheduler.elasticity.max_instances:
            pass  # where nobody is there or awake, the policy brings somebody
        elif together != ALL_ROLES or not self.cluster.schedulers:
            self.cluster.join(ALL_ROLES)
        self.cluster.drain()


def live(seed, events=60, life_of=Life, ticks=False):
    """A whole life by a seed: the rules of the state machine below, without hypothesis. `ticks`: quiet times, more deaths."""
    life = life_of(random.Random(seed))
    acts = [life.submit] * 6 + [life.abandon, life.move, life.move, life.set_roles, life.encoder_fails]
    acts += [life.words_get_slow]
    for number in range(events):
        seldom = [life.kill, life.join] if number % 5 == 4 else []
        often = [life.kill, life.quiet, life.quiet] if ticks else []
        life.rng.choice([*acts, *seldom, *often])()
        life.advance(life.rng.choice([0, 1, 3, 10, 30]))
    life.end()
    return life.cluster


class Servings(RuleBasedStateMachine):
    """Whatever happens, every answer is the right one, counters are what can be counted, and nothing is left behind."""

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
    def abandon(self):
        self.life.abandon()

    @rule()
    def move(self):
        self.life.move()

    @rule()
    def set_roles(self):
        self.life.set_roles()

    @rule()
    def encoder_fails(self):
        self.life.encoder_fails()

    @rule()
    def words_get_slow(self):
        self.life.words_get_slow()

    @rule(sure=st.integers(0, 2))
    def join(self, sure):
        if not sure:
            self.life.join()

    @rule(sure=st.integers(0, 3))
    def kill(self, sure):
        if not sure:
            self.life.kill()

    @rule(events=st.integers(1, 40))
    def advance(self, events):
        self.life.advance(events)

    def teardown(self):
        if hasattr(self, "life"):
            self.life.end()


Servings.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestServings = Servings.TestCase


def preset_life(name, seed):
    return live(seed, 40, lambda rng: Life(rng, partial(preset_cluster, name)), ticks=True)


@pytest.mark.parametrize("name", ["adaptive", "emp", "emp-paper", "emp-release", "coupled"])
def test_lives_under_a_preset(name):
    """Every answer is right whatever policies do with groups, roles and the number of instances; and they do."""
    lives = [preset_life(name, seed) for seed in range(9)]
    counts = sum((cluster.serving.scheduler.counts for cluster in lives), Counter())
    assert counts["dispatched"] > 100 and counts["instances_lost"] > 10
    for key in ("instances_started", "instances_stopped", "instance_sleeps", "instance_wakes"):
        assert counts[key], key
    if name in ("adaptive", "emp", "emp-paper"):
        assert counts["role_changes"] > 1
    if name in ("emp", "emp-paper"):  # soft shares of so few instances are less than one
        assert counts["group_changes"]


@pytest.mark.parametrize("seed", [*range(5), 130])
def test_a_long_life(seed):
    live(seed, 40)


def test_lives_see_every_action():
    """And moves that succeed, moves that fail, losses, and requests that come again with pixels and with what was made."""
    lives = [live(seed, 40) for seed in [*range(100, 116), 130]]
    seen = sum((cluster.serving.seen for cluster in lives), Counter())
    elastic = {"SetGroup", "StartInstance", "StopInstance", "SleepInstance", "WakeInstance"}
    assert {action.__name__ for action in get_args(ServingAction)} - elastic == set(seen)
    counts = sum((cluster.serving.scheduler.counts for cluster in lives), Counter())
    assert min(counts[key] for key in ("moves", "moves_failed", "instances_lost", "dispatched")) > 4
    clients = [client for cluster in lives for client in cluster.serving.answers.values()]
    assert sum(client.asked for client in clients) > 10


# --- the harness can fail: each of these is a bug that one could write


def a_move_that_only_reports_success(monkeypatch):
    def move(self, live, to, reason):
        self._held.pop(live.request_id, None)
        self.fleet.servers[live.owner].drop_decode(live)
        to.take_decode(live)
        live.owner, live.held = to.name, False

    monkeypatch.setattr(Moves, "_move", move)


def a_lost_instance_whose_requests_are_not_sent_again(monkeypatch):
    monkeypatch.setattr(Attempts, "begin_anew", lambda self, live, reason: None)


def flights_that_never_land(monkeypatch):
    monkeypatch.setattr(ImageDispatch, "_land", lambda self, content_hash, to: None)


def flights_that_only_arrivals_land(monkeypatch):
    monkeypatch.setattr(ImageDispatch, "release", lambda self, live: None)


def encoders_that_are_lost_with_what_they_encode(monkeypatch):
    monkeypatch.setattr(ImageDispatch, "instance_lost", lambda self, name: ([], {}))


def missing_images_that_are_not_sent_again(monkeypatch):
    monkeypatch.setattr(ImageDispatch, "needed", lambda self, live, to, hashes: ([], (), ()))


def tokens_told_as_they_come(monkeypatch):
    def tokens(self, server, message, logprobs):
        live = self._live.get(message.request_id.rpartition("#")[0])
        if live is not None and live.attempt == message.request_id:
            if live.owner == server.name and message.tokens:
                self._attempts.past_prompt(server, live)
            self._tell(server, live, message, logprobs)

    monkeypatch.setattr(ServingScheduler, "_tokens", tokens)


def words_of_an_attempt_that_is_over(monkeypatch):
    current = Attempts.current

    def any_attempt(self, server, attempt):
        live = self.live.get(attempt.rpartition("#")[0])
        return live if live is not None and live.owner else current(self, server, attempt)

    monkeypatch.setattr(Attempts, "current", any_attempt)


def attempts_that_are_not_called_off(monkeypatch):
    monkeypatch.setattr(Attempts, "call_off", lambda self, live: None)


def attempts_with_the_same_name(monkeypatch):
    def always_one(self, live, reason, only=None):
        self._number = 0
        return dispatch(self, live, reason, only)

    dispatch = Attempts.dispatch
    monkeypatch.setattr(Attempts, "dispatch", always_one)


def a_move_that_failed_and_is_still_waited_for(monkeypatch):
    monkeypatch.setattr(Moves, "failed", lambda self, live, to: None)


def a_move_undone_that_is_counted_on(monkeypatch):
    def failed(self, live, to):
        if live.moving_to == to:
            live.moving_to = ""
            live.refused_by.add(to)
            if live.held:
                self._find_decoder(live)

    monkeypatch.setattr(Moves, "failed", failed)


def those_without_a_decoder_forgotten(monkeypatch):
    monkeypatch.setattr(Moves, "has_room", lambda self, server: None)


def those_without_a_home_forgotten(monkeypatch):
    monkeypatch.setattr(Attempts, "retry", lambda self: None)


def stages_that_nobody_takes_over(monkeypatch):
    monkeypatch.setattr(Fleet, "take_over_stages", lambda self, now_ns: None)


def changes_without_rest(monkeypatch):
    monkeypatch.setattr(Elastic, "cooling", lambda self, server, kind=None: False)


def groups_that_may_lose_a_stage(monkeypatch):
    monkeypatch.setattr(Fleet, "group_lacks", lambda self, server, roles, group: "")


def those_who_wait_for_room_forgotten(monkeypatch):
    monkeypatch.setattr(Attempts, "place_waiting", lambda self, server=None: None)


def instances_ended_with_their_work(monkeypatch):
    def emptied(self):
        done = [each for each in self.fleet.servers.values() if each.state in ("leaving", "drowsy")]
        for server in done:
            server.enter("ending" if server.state == "leaving" else "falling", 0)
        return done

    monkeypatch.setattr(Elastic, "emptied", emptied)


def the_last_ones_put_to_sleep(monkeypatch):
    monkeypatch.setattr(Elastic, "_why_needed", lambda self, server: "")


def sleepers_that_are_asked_for_images(monkeypatch):
    monkeypatch.setattr(ImageDispatch, "forget", lambda self, server: None)


def sleepers_that_take_stages_over(monkeypatch):
    monkeypatch.setattr(Server, "is_up", True)


def the_woken_counted_as_awake_at_once(monkeypatch):
    wake = Elastic._wake

    def at_once(self, server, proposal):
        done = wake(self, server, proposal)
        if done and server.state == "waking":
            self.fleet.awake(server, server.resume)
        return done

    monkeypatch.setattr(Elastic, "_wake", at_once)


MUTATIONS = [
    a_move_that_only_reports_success, a_lost_instance_whose_requests_are_not_sent_again, flights_that_never_land,
    flights_that_only_arrivals_land, encoders_that_are_lost_with_what_they_encode,
    missing_images_that_are_not_sent_again, tokens_told_as_they_come,
    words_of_an_attempt_that_is_over, attempts_that_are_not_called_off,
    attempts_with_the_same_name, a_move_that_failed_and_is_still_waited_for, a_move_undone_that_is_counted_on,
    those_without_a_decoder_forgotten, those_without_a_home_forgotten,
    stages_that_nobody_takes_over,
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("emp", changes_without_rest),
        ("emp", groups_that_may_lose_a_stage),
        ("emp", those_who_wait_for_room_forgotten),
        ("adaptive", instances_ended_with_their_work),
        ("coupled", the_last_ones_put_to_sleep),
        ("coupled", sleepers_that_are_asked_for_images),
        ("emp", sleepers_that_take_stages_over),
        ("coupled", the_woken_counted_as_awake_at_once),
    ],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_the_harness_catches_under_a_preset(name, mutate, monkeypatch):
    mutate(monkeypatch)
    for seed in range(60):
        try:
            preset_life(name, seed)
        except (AssertionError, KeyError):
            return
    pytest.fail("no life went wrong")


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_the_harness_catches(mutate, monkeypatch):
    mutate(monkeypatch)
    first = 117 if mutate is tokens_told_as_they_come else 0  # rare: spares the lives before
    for seed in range(first, first + 200):
        try:
            live(seed, 40)
        except (AssertionError, KeyError):
            return
    pytest.fail("no life went wrong")
