"""Every registered routing policy keeps the contract; relations that hold between them."""

import heapq
import random

import pytest

from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.instance_actions import TellTokens
from tierline.core.request import ALL_ROLES, Request, Role, Sampling
from tierline.core.routing_view import InstanceView, RequestView
from tierline.core.serving_actions import QueueAttempt
from tierline.core.serving_events import InstanceJoined, InstanceSaid, RequestSubmitted
from tierline.policies.routing import POLICIES, make_routing
from tierline.schedulers.serving import ServingScheduler

REQUEST = RequestView("r", prompt_tokens=3)


def some_views(rng):
    return tuple(
        InstanceView(f"i{at}", ALL_ROLES, *(rng.randrange(5) for _ in range(4)), 9) for at in range(rng.randrange(1, 9))
    )


@pytest.mark.parametrize("name", sorted(POLICIES))
class TestRegistered:
    def test_it_is_where_the_registry_says_and_explains_itself(self, name):
        policy = type(make_routing(name))
        assert policy.__module__.endswith(f".{name}")
        assert all(word in policy.__doc__ for word in ("Idea:", "Source:", "Inputs:", "Memory:", "Cost:"))

    def test_one_of_the_instances_is_chosen_the_same_for_the_same(self, name):
        chosen = []
        for _ in range(2):
            policy, rng = make_routing(name), random.Random(0)
            chosen.append([])
            for _ in range(200):
                views, stage = some_views(rng), rng.choice(list(Role))
                chosen[-1].append(policy.choose(stage, views, REQUEST, 0))
                assert chosen[-1][-1] in {view.name for view in views}
        assert chosen[0] == chosen[1]

    def test_equal_instances_get_equal_shares(self, name):
        assert max(prompts_sent(name, [10] * 40).values()) == 10


def test_an_unknown_policy_and_wrong_options_are_refused():
    with pytest.raises(UnknownName, match="did you mean 'least_loaded'"):
        make_routing("least_load")
    with pytest.raises(InvalidInput, match="does not take these options"):
        make_routing("round_robin", {"speed": 3})


@pytest.mark.parametrize(
    ("stage", "best"), [(Role.PREFILL, "prompts"), (Role.DECODE, "decodes"), (Role.ENCODE, "encodes")]
)
def test_least_loaded_counts_the_work_of_the_stage(stage, best):
    views = (
        InstanceView("prompts", ALL_ROLES, 0, 9, 9, 1, 9),
        InstanceView("decodes", ALL_ROLES, 9, 0, 9, 1, 9),
        InstanceView("encodes", ALL_ROLES, 9, 9, 0, 1, 9),
    )
    assert make_routing("least_loaded").choose(stage, views, REQUEST, 0) == best


def prompts_sent(name, lengths, instances=4):
    """How many prompts each instance gets when none is done."""
    scheduler, sent = ServingScheduler(make_routing(name)), {}
    for at in range(instances):
        scheduler.handle(0, InstanceJoined(f"i{at}", ALL_ROLES))
    for number, length in enumerate(lengths):
        request = Request(f"r{number}", (1,) * length, Sampling(5))
        (queue,) = scheduler.handle(0, RequestSubmitted(request))
        sent[queue.instance] = sent.get(queue.instance, 0) + 1
    return sent


def mean_wait(name, seed, instances=4, requests=300):
    """Mean time until the first token: instances prefill one prompt after the other, one token a unit of time; one prompt
    in eight is 40 times as long as the others."""
    rng, scheduler = random.Random(seed), ServingScheduler(make_routing(name))
    for at in range(instances):
        scheduler.handle(0, InstanceJoined(f"i{at}", ALL_ROLES))
    free, ends, waits, now = {}, [], [], 0.0
    for number in range(requests):
        now += rng.expovariate(instances * 0.7 / (7 / 8 * 10 + 400 / 8))
        length = 400 if rng.randrange(8) == 0 else 10
        while ends and ends[0][0] <= now:
            _, instance, attempt = heapq.heappop(ends)
            scheduler.handle(0, InstanceSaid(instance, TellTokens(attempt, 0, (1,), "stop")))
        (queue,) = scheduler.handle(0, RequestSubmitted(Request(f"r{number}", (1,) * length, Sampling(1))))
        assert isinstance(queue, QueueAttempt)
        free[queue.instance] = max(now, free.get(queue.instance, 0.0)) + length
        heapq.heappush(ends, (free[queue.instance], queue.instance, queue.request.request_id))
        waits.append(free[queue.instance] - now)
    return sum(waits) / len(waits)


def test_least_loaded_waits_less_than_round_robin_where_lengths_differ():
    assert all(mean_wait("least_loaded", seed) < 0.8 * mean_wait("round_robin", seed) for seed in range(5))
