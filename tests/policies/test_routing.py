"""Every registered routing policy keeps the contract; relations that hold between them."""

import heapq
import random

import pytest
from msgspec.structs import replace

from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.instance_actions import TellTokens
from tierline.core.request import ALL_ROLES, Request, Role, Sampling
from tierline.core.routing_view import WAIT, InstanceView, RequestView
from tierline.core.serving_actions import QueueAttempt
from tierline.core.serving_events import InstanceJoined, InstanceSaid, RequestSubmitted
from tierline.core.slo import Slo
from tierline.perf.serving_demand import StageRates
from tierline.policies.routing import POLICIES, make_routing
from tierline.schedulers.serving import ServingScheduler

REQUEST = RequestView("r", prompt_tokens=3)


def some_views(rng):
    return tuple(some_view(rng, f"i{at}") for at in range(rng.randrange(1, 9)))


def some_view(rng, name):
    """Counts that fit each other: idle, or with prompts, decodes and images to some degree."""
    prompts, decoding, encoding = (rng.choice([0, 0, 1, 5]) for _ in range(3))
    return InstanceView(
        name, ALL_ROLES, 700 * prompts, decoding, encoding, rng.randrange(1000), 1000,
        rng.choice(["text", "multimodal", "shared"]), prompts, 0.03 * prompts, 0.02 * encoding,
        400 * decoding, 0.01 if decoding else 0.0,
    )  # fmt: skip


def some_request(rng):
    images, prompt = rng.choice([0, 0, 2]), rng.randrange(1, 3000)
    return RequestView(
        "r", rng.randrange(10**9), rng.choice([0, 0, 1]), prompt, images * 200, images, 0,
        rng.randrange(10**10), 40e-6 * prompt, 0.01 * images, rng.choice(["", "i0"]),
        {"i0": prompt // 2}, {"i0": 200} if images else {},
    )  # fmt: skip


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
                chosen[-1].append(policy.choose(stage, views, some_request(rng), 0))
                may_wait = policy.late and stage is not Role.ENCODE and not all(view.idle for view in views)
                assert chosen[-1][-1] in {view.name for view in views} | ({WAIT} if may_wait else set())
        assert chosen[0] == chosen[1]
        assert not make_routing(name).late or WAIT in chosen[0]

    def test_the_order_is_that_of_arrival_unless_priorities_or_deadlines_say_otherwise(self, name):
        policy, rng = make_routing(name), random.Random(1)
        requests = [some_request(rng) for _ in range(50)]
        places = [policy.order(each, 5) for each in requests]
        assert len({len(place) for place in places}) == 1
        early, late = (replace(requests[0], submitted_ns=at, deadline_ns=at + 10**9) for at in (0, 10))
        assert policy.order(early, 5) <= policy.order(late, 5)
        if policy.late:
            assert policy.order(early, 5) < policy.order(late, 5)
            assert policy.order(replace(late, priority=1), 5) < policy.order(early, 5)

    def test_equal_instances_get_equal_shares(self, name):
        sent = prompts_sent(name, [10] * 40)
        assert len(sent) == 4 and max(sent.values()) - min(sent.values()) <= 1


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
        for queue in scheduler.handle(0, RequestSubmitted(request)):  # none where it waits in the scheduler
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


# --- late_binding: who passes whom, and where an image is encoded


def binding(**options):
    slo = Slo(ttft_ns=50_000_000, tpot_ns=20_000_000, image_ttft_ns=150_000_000)
    return make_routing("late_binding", options, slo=slo)


def busy(name, prompts=0, texts=0, barred=0, each_s=0.1, encode_s=0.0):
    return InstanceView(
        name, ALL_ROLES, 1000 * prompts, 0, int(encode_s > 0), 900, 1000, prompts=prompts, prefill_s=each_s * prompts,
        barred=barred, barred_tokens=1000 * barred, barred_s=each_s * barred, texts=texts, texts_s=each_s * texts,
        encode_s=encode_s,
    )  # fmt: skip


def test_text_passes_images_at_an_instance_but_waits_for_text():
    text = RequestView("t", prompt_tokens=1000, prefill_s=0.02)
    crowded_by_images, crowded_by_texts = busy("images", prompts=6), busy("texts", prompts=3, texts=3)
    policy = binding()
    assert policy.choose(Role.PREFILL, (crowded_by_images, crowded_by_texts), text, 0) == "images"
    assert policy.choose(Role.PREFILL, (crowded_by_texts,), text, 0) == WAIT
    assert binding(by_deadline=False).choose(Role.PREFILL, (crowded_by_images,), text, 0) == WAIT


def test_an_instance_full_of_decodes_gets_no_prompt():
    text, bare = RequestView("t", prompt_tokens=1000, prefill_s=0.02), busy("i0")
    policy = binding(rates=StageRates(decode_base_s=0.008))  # 20 ms promised
    full = replace(busy("i1"), decoding=200, decode_s=0.014)
    assert policy.choose(Role.PREFILL, (full,), text, 0) == WAIT
    assert policy.choose(Role.PREFILL, (full, busy("i0", prompts=1, texts=1)), text, 0) == "i0"
    assert policy.choose(Role.PREFILL, (replace(full, decode_s=0.013),), text, 0) == "i1"
    assert policy.choose(Role.PREFILL, (full, bare), text, 0) == "i0"


def test_a_promise_hardly_longer_than_a_decode_still_lets_prompts_in():
    text = RequestView("t", prompt_tokens=1000, prefill_s=0.02)
    for base_s in (0.018, 0.03):  # 20 ms promised
        policy = binding(rates=StageRates(decode_base_s=base_s))
        assert policy.choose(Role.PREFILL, (replace(busy("i0"), decoding=1, decode_s=base_s),), text, 0) == "i0"


def test_text_goes_where_no_image_is_under_way():
    text = RequestView("t", prompt_tokens=1000, prefill_s=0.02)
    assert binding().choose(Role.PREFILL, (busy("i0", prompts=1, barred=1), busy("i1")), text, 0) == "i1"


def test_decodes_gather_where_no_prompts_are_but_only_so_far():
    answer = RequestView("a", prompt_tokens=100)
    prompts = replace(busy("prompts", prompts=3), decoding=60, decode_s=0.009)
    quiet = replace(busy("quiet"), decoding=100, decode_s=0.012)
    policy = binding()  # 20 ms promised; prompts make iterations 14 ms long
    assert policy.choose(Role.DECODE, (prompts, quiet), answer, 0) == "quiet"
    assert policy.choose(Role.DECODE, (prompts, replace(quiet, decode_s=0.015)), answer, 0) == "prompts"


def test_a_request_with_images_is_bound_at_once_so_that_they_are_encoded_meanwhile():
    images = RequestView("m", prompt_tokens=1000, image_tokens=500, images=1, prefill_s=0.02, encode_s=0.01)
    assert binding().choose(Role.PREFILL, (busy("i0", prompts=3), busy("i1", prompts=5)), images, 0) == "i0"
    assert binding(most_barred=4).choose(Role.PREFILL, (busy("i0", prompts=4, barred=4),), images, 0) == WAIT


def test_an_image_is_encoded_at_home_unless_something_runs_beside_it():
    """Its own prompt waits for it and is in nobody's way."""
    images = RequestView("m", prompt_tokens=1000, images=1, prefill_s=0.1, home="home")
    alone, elsewhere = busy("home", prompts=1, barred=1), busy("else")
    assert binding().choose(Role.ENCODE, (elsewhere, alone), images, 0) == "home"
    assert binding().choose(Role.ENCODE, (elsewhere, busy("home", prompts=3, barred=1)), images, 0) == "else"
