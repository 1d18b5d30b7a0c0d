"""The simulated deployment: exact times, leaps that change nothing, deaths, and answers whose length nobody knows."""

import hashlib
import random
from dataclasses import replace

import pytest

from tierline.backends.serving.sim import Kill, SimOptions, limits_of
from tierline.backends.serving.sim_device import IterationTimer
from tierline.backends.serving.sim_instance import DeviceOptions
from tierline.backends.serving.sim_prompts import Prompts
from tierline.core.errors import InvalidInput
from tierline.core.request import ALL_ROLES, Role
from tierline.core.served_trace import ServedTrace, TracedImage, TracedRequest
from tierline.core.serving_actions import WakeInstance
from tierline.core.serving_events import InstanceSaid, MoveWanted, RolesAsked
from tierline.core.stage_times import BatchShape
from tierline.perf.device_sharing import Overlap, Work
from tierline.policies.batching import make_batching
from tierline.policies.routing import make_routing
from tierline.policies.scale import make_scale
from tierline.schedulers.sequence import HashedKeys
from tierline.schedulers.serving import ServingScheduler
from tierline.schedulers.serving_elastic import Elasticity
from tierline.testing.serving_sim import PlainTimes, made_up_trace, simulate

TIMES = PlainTimes()
EPD = (ALL_ROLES,)
SPLIT = tuple(Role.parse(letters) for letters in ("E", "P", "D", "D"))
LATENCY_NS = 200_000


def run(trace, roles=EPD * 2, *, times=TIMES, batching="sarathi", limits=None, routing="least_loaded", **options):
    limits = limits or limits_of(times)
    options = SimOptions(roles, limits, lambda: make_batching(batching), **options)
    return simulate(ServingScheduler(make_routing(routing), queue_limit=10**9), trace, times, options)


def trace_of(*requests):
    return ServedTrace("by hand", tuple(requests), "by hand")


def one(text=100, output=5, images=(), at_ns=0, prefix=()):
    return TracedRequest(at_ns, text, output, images, prefix)


def ns(seconds):
    return round(seconds * 1e9)


# --- exact times


def test_one_request_takes_its_prompt_its_decodes_and_the_way_there_and_back():
    backend, _ = run(trace_of(one(text=100, output=5)), EPD)
    (outcome,) = backend.outcomes()
    first = ns(TIMES.iteration_s(BatchShape(((100, 0),)))) + 2 * LATENCY_NS
    assert outcome.first_token_ns == first
    assert outcome.finished_ns == first + ns(TIMES.decodes_s(1, 100, 4))
    assert (outcome.output_tokens, outcome.outcome) == (5, "finished")


def test_a_prompt_beside_decodes_is_one_iteration_of_both():
    backend, _ = run(trace_of(one(output=50), one(text=40, output=1, at_ns=ns(0.0101))), EPD)
    first, second = backend.outcomes()
    prompt = LATENCY_NS + ns(TIMES.iteration_s(BatchShape(((100, 0),))))
    begun = next(
        prompt + ns(TIMES.decodes_s(1, 100, n))
        for n in range(50)
        if prompt + ns(TIMES.decodes_s(1, 100, n)) >= ns(0.0101) + LATENCY_NS
    )
    done = round((begun - prompt) / ns(TIMES.decodes_s(1, 100, 1)))
    mixed = TIMES.iteration_s(BatchShape(((40, 0),), 1, 100 + done))
    assert second.finished_ns == begun + ns(mixed) + LATENCY_NS
    assert first.finished_ns == begun + ns(mixed) + ns(TIMES.decodes_s(1, 101 + done, 48 - done)) + LATENCY_NS


def test_a_prefix_that_was_computed_is_not_computed_again():
    prefix = (("system", 96),)
    both = trace_of(one(text=100, output=1, prefix=prefix), one(text=100, output=1, prefix=prefix, at_ns=ns(1)))
    _, again = run(both, EPD)[0].outcomes()
    other = trace_of(both.requests[0], replace(both.requests[1], prefix=(("another", 96),)))
    _, anew = run(other, EPD)[0].outcomes()
    assert again.first_token_ns - again.arrived_ns == ns(TIMES.iteration_s(BatchShape(((4, 96),)))) + 2 * LATENCY_NS
    assert anew.first_token_ns - anew.arrived_ns == ns(TIMES.iteration_s(BatchShape(((100, 0),)))) + 2 * LATENCY_NS


def test_a_picture_seen_before_is_neither_prepared_nor_encoded_again():
    picture = (TracedImage("h", 100),)
    first, again = run(trace_of(one(images=picture), one(images=picture, at_ns=ns(5))), EPD)[0].outcomes()
    encoded = ns(TIMES.prepare) + ns(TIMES.encode_s([400])) + LATENCY_NS
    # Its text can be computed while it is encoded only behind it, so all waits; the second finds image and KV.
    assert first.first_token_ns == encoded + ns(TIMES.iteration_s(BatchShape(((200, 0),)))) + LATENCY_NS
    assert again.first_token_ns - again.arrived_ns < first.first_token_ns - encoded


def test_an_image_has_as_many_patches_as_the_model_merges_into_a_token():
    times = replace(TIMES, patches_per_token=9)
    said, unsaid = (
        run(trace_of(one(images=(TracedImage("h", 100, patches),))), EPD, times=times)[0].outcomes()[0]
        for patches in (900, 0)
    )
    (four,) = run(trace_of(one(images=(TracedImage("h", 100),))), EPD)[0].outcomes()
    assert said == unsaid
    assert unsaid.first_token_ns - four.first_token_ns == ns(TIMES.encode_s([900])) - ns(TIMES.encode_s([400]))


def test_embeddings_and_kv_take_the_link_of_who_sends_them():
    picture = (TracedImage("h", 100),)
    slow = replace(TIMES, bandwidth=1e8)
    request = trace_of(one(images=picture, output=3))
    fast, slowly = (run(request, SPLIT, times=times)[0] for times in (replace(slow, bandwidth=1e15), slow))
    embeddings, kv = 100 * TIMES.embedding_token_bytes, 200 * TIMES.kv_token_bytes
    assert fast.counts["transfer_bytes"] == embeddings + kv
    late = slowly.outcomes()[0].first_token_ns - fast.outcomes()[0].first_token_ns
    assert late == pytest.approx(embeddings / 1e8 * 1e9, abs=2)
    late = slowly.outcomes()[0].finished_ns - fast.outcomes()[0].finished_ns
    assert late == pytest.approx((embeddings + kv) / 1e8 * 1e9, abs=20)


def test_images_wait_for_a_worker_that_prepares_them():
    pictures = tuple(TracedImage(f"h{number}", 10) for number in range(8))
    slow = replace(TIMES, prepare=0.1)
    ends = [run(trace_of(one(images=pictures)), times=slow, cpu_workers=n)[0].outcomes()[0] for n in (1, 4, 8)]
    seconds = [round(outcome.first_token_ns / 1e9, 1) for outcome in ends]
    assert seconds == [0.8, 0.2, 0.1]


# --- the device


def test_an_encoder_slows_a_prompt_more_than_decodes_and_is_slowed_alike():
    overlap = Overlap(ridge_tokens=300, encoder_arithmetic=0.8, encoder_bandwidth=0.3)
    assert overlap.slowdown(3000) == pytest.approx(1.8)
    assert overlap.slowdown(30) == pytest.approx(1.3)
    assert Overlap(encoder_arithmetic=0.0, encoder_bandwidth=0.0).slowdown(3000) == 1.0
    work = Work(100.0, 0)
    work.change(50, 2.0)
    assert work.end_ns == 150
    work.change(100, 1.0)
    assert work.end_ns == 125


def test_leaps_find_the_iteration_that_is_under_way():
    timer = IterationTimer(TIMES)
    timer.start(1000, BatchShape((), 3, 500))
    ends = [timer.end_ns(count) for count in range(1, 40)]
    rng = random.Random(0)
    for at_ns in [*ends, *(each - 1 for each in ends), *(rng.randrange(ends[-1] + 100) for _ in range(200)), 0, 1000]:
        assert timer.until(at_ns, 30) == min(30, sum(end <= at_ns for end in ends))


def encoded_beside(kind, images=6, **times):
    """A request decodes while another's images come; when both have ended."""
    pictures = tuple(TracedImage(f"h{number}", 200) for number in range(images))
    device = DeviceOptions(encoder=kind)
    both = trace_of(one(output=100), one(images=pictures, output=1, at_ns=ns(0.05)))
    backend, _ = run(both, EPD, device=device, times=replace(TIMES, patch=20e-6, prepare=20e-3, **times))
    return [outcome.finished_ns / 1e9 for outcome in backend.outcomes()]


def test_encoding_stalls_decodes_the_more_the_older_the_engine_is():
    alone = run(trace_of(one(output=100)), EPD)[0].outcomes()[0].finished_ns / 1e9
    free = encoded_beside("overlapped", overlap=Overlap(encoder_arithmetic=0.0, encoder_bandwidth=0.0))
    overlapped, inline, blocking = (encoded_beside(kind) for kind in ("overlapped", "inline", "blocking"))
    mixed = 1300 * TIMES.token  # the other's prompt goes along with one of its iterations
    assert alone < free[0] < alone + mixed + 0.01
    assert free[0] < overlapped[0] < inline[0] < blocking[0]
    assert blocking[0] - inline[0] == pytest.approx(6 * 20e-3, abs=0.01)
    encodes = 6 * (TIMES.image + 800 * 20e-6)
    assert inline[0] - free[0] == pytest.approx(encodes, abs=0.01)
    # Decodes lose 0.3 / 1.3 of the time of the slowed encoder; the prompt chunks that begin meanwhile lose more.
    assert 0.3 * encodes < overlapped[0] - free[0] < 0.5 * encodes


def test_nothing_is_gained_by_overlap_beyond_what_the_device_has():
    """Two that use all of one thing take as long beside each other as one after the other."""
    overlap = Overlap(encoder_arithmetic=1.0, encoder_bandwidth=1.0)
    free = encoded_beside("overlapped", overlap=Overlap(encoder_arithmetic=0.0, encoder_bandwidth=0.0))
    shared = encoded_beside("overlapped", overlap=overlap)
    encodes = 6 * (TIMES.image + 800 * 20e-6)
    assert shared[0] - free[0] == pytest.approx(encodes, abs=0.02)


# --- leaps


def lives():
    """Random loads over every feature: (name, arguments of `run`)."""
    small = limits_of(TIMES, blocks=90, pool_bytes=3_000_000, sequence_limit=12, token_budget=300)
    tiny = limits_of(TIMES, blocks=45, block_tokens=16, sequence_limit=8, context_tokens=500)
    kills = (Kill(ns(0.9), "i1"), Kill(ns(1.6), "i0"), Kill(ns(2.0), "i1~1", replaced=False))
    light = made_up_trace(1, 60, 30.0)
    heavy = made_up_trace(2, 90, 120.0, prompt=120, output=60)
    yield "light", {"trace": light}
    yield "heavy", {"trace": heavy, "roles": EPD * 3}
    yield "little KV", {"trace": heavy, "limits": small}
    yield "tiny", {"trace": made_up_trace(3, 60, 60.0, prompt=60, output=60), "limits": tiny}
    yield "fcfs", {"trace": heavy, "batching": "fcfs", "limits": small}
    yield "split", {"trace": heavy, "roles": SPLIT}
    yield "split, little KV", {"trace": heavy, "roles": (*SPLIT, Role.parse("PD")), "limits": small}
    yield "deaths", {"trace": heavy, "roles": EPD * 3, "kills": kills, "start_ns": ns(0.3)}
    yield "deaths, split", {"trace": heavy, "roles": SPLIT, "kills": kills, "start_ns": ns(0.3)}
    yield "inline", {"trace": heavy, "device": DeviceOptions("inline")}
    yield "blocking", {"trace": heavy, "device": DeviceOptions("blocking"), "batching": "fcfs"}
    yield "short answers allowed", {"trace": heavy, "max_tokens": 30}
    yield "round robin, slow words", {"trace": heavy, "routing": "round_robin", "latency_ns": ns(0.004)}
    yield "no latency", {"trace": heavy, "latency_ns": 0}


@pytest.mark.parametrize(("name", "arguments"), list(lives()), ids=[name for name, _ in lives()])
def test_leaping_over_decodes_changes_nothing(name, arguments):
    """Every word that reaches the serving scheduler, when it does, and all that it decides."""
    leapt, leaps = run(**arguments)
    stepped, steps = run(**arguments, lockstep=False)
    assert leapt.outcomes() == stepped.outcomes()
    assert leaps.rows == steps.rows
    assert all(outcome.outcome in ("finished", "error") for outcome in leapt.outcomes())
    assert sum(outcome.ok for outcome in leapt.outcomes()) >= len(leapt.outcomes()) * 0.9


def test_roles_and_moves_in_the_midst_of_leaps_change_nothing():
    trace = made_up_trace(5, 60, 60.0, output=80)
    rows = []
    for lockstep in (True, False):
        rng = random.Random(7)
        scheduler = ServingScheduler(make_routing("least_loaded"), queue_limit=10**9)
        options = SimOptions(EPD * 3, limits_of(TIMES), lambda: make_batching("sarathi"), lockstep=lockstep)
        disturbed = Disturbed(scheduler, rng)
        _, record = simulate(disturbed, trace, TIMES, options)
        rows.append(record.rows)
        assert scheduler.counts["moves"] > 10
    assert rows[0] == rows[1]


class Disturbed:
    """A serving scheduler whose users ask for moves and roles at odd moments: after every so many words of instances."""

    def __init__(self, scheduler, rng):
        self.scheduler, self.rng, self.count, self.tick_ns = scheduler, rng, 0, scheduler.tick_ns

    def handle(self, now_ns, event):
        actions = self.scheduler.handle(now_ns, event)
        self.count += isinstance(event, InstanceSaid)
        if self.count % 5 == 0 and (names := sorted(self.scheduler.servers)):
            live = sorted(self.scheduler._live)
            if live:
                actions += self.scheduler.handle(now_ns, MoveWanted(self.rng.choice(live), self.rng.choice(names)))
            roles = self.rng.choice([ALL_ROLES, ALL_ROLES, Role.parse("EP"), Role.parse("D")])
            actions += self.scheduler.handle(now_ns, RolesAsked(self.rng.choice(names), roles))
        return actions


def test_leaps_are_taken():
    backend, _ = run(made_up_trace(1, 40, 10.0))
    steps = sum(instance._scheduler._step for instance in backend.instances)
    iterations = sum(instance.iterations for instance in backend.instances)
    assert steps < iterations / 3


def test_leaps_are_taken_beside_one_who_waits_for_his_image():
    slow = replace(TIMES, prepare=1.0)
    beside = one(images=(TracedImage("h", 50),), output=1, at_ns=ns(0.05))
    backend, _ = run(trace_of(one(output=200), beside), EPD, times=slow)
    (instance,) = backend.instances
    assert instance.iterations > 200
    assert instance._scheduler._step < 40


# --- caches


def test_names_of_blocks_find_the_prefixes_that_their_contents_have(monkeypatch):
    """Hashing every block finds the same."""
    arguments = dict(list(lives())[2][1])
    named = run(**arguments)[1].rows
    hashed = HashedKeys()
    monkeypatch.setattr(Prompts, "extend", lambda self, *given: hashed.extend(*given))
    assert run(**arguments)[1].rows == named


def test_prompts_begin_alike_as_far_as_their_prefixes_and_images_do():
    prompts = Prompts(10)
    picture, other = (TracedImage("a", 20),), (TracedImage("b", 20),)
    base = TracedRequest(0, 100, 1, picture, (("x", 30), ("y", 30)))
    requests = [base, base, replace(base, images=other), replace(base, prefix=(("x", 30), ("z", 30)))]
    requests.append(replace(base, prefix=(("x", 29), ("y", 30))))
    made = [prompts.request(f"r{number}", each) for number, each in enumerate(requests)]
    assert all(len(each.prompt) == 120 for each in made)

    def alike(one, other, blocks=120):
        keys = [[], []]
        for found, request in zip(keys, (one, other), strict=True):
            prompts.extend(found, request, request.prompt, blocks, 1)
        return next(n for n in range(blocks) if keys[0][n] != keys[1][n])

    assert [alike(made[0], each) for each in made[1:]] == [80, 60, 30, 0]
    assert [made[0].prompt[:n] == each.prompt[:n] for each, n in zip(made[1:], (80, 60, 30), strict=False)] == [
        True
    ] * 3


# --- deaths, limits, truth


def test_whoever_dies_is_replaced_and_nobody_is_forgotten():
    trace = made_up_trace(4, 80, 100.0)
    kills = tuple(Kill(ns(0.2 + 0.15 * number), name) for number, name in enumerate(["i0", "i1", "i2", "i0~1"]))
    backend, record = run(trace, EPD * 3, kills=kills, start_ns=ns(0.1))
    assert all(outcome.ok for outcome in backend.outcomes())
    assert [each.output_tokens for each in backend.outcomes()] == [each.output_tokens for each in trace.requests]
    names = {type(event).__name__ for _, event, _ in record.rows}
    assert {"InstanceLost", "InstanceJoined"} <= names
    assert {instance.name for instance in backend.instances} == {"i0~2", "i1~1", "i2~1"}


def test_all_are_lost_and_nobody_comes_back():
    backend, _ = run(made_up_trace(4, 20, 50.0), EPD, kills=(Kill(ns(0.1), "i0", replaced=False),))
    left = [outcome for outcome in backend.outcomes() if outcome.outcome == "unfinished"]
    assert left and backend.open == len(left) and not backend.instances


# --- instances that come and go


def waves(*, busy_s=30.0, quiet_s=60.0, times=3, rate=25.0):
    """Text of so many requests a second, then next to nothing, and again."""
    rng, at_s, requests = random.Random(3), 0.0, []
    while at_s < times * (busy_s + quiet_s):
        requests.append(one(text=rng.randrange(1500, 3500), output=rng.randrange(20, 80), at_ns=ns(at_s)))
        busy = at_s % (busy_s + quiet_s) < busy_s
        at_s += rng.expovariate(rate if busy else 0.2)
    return trace_of(*requests)


def scaled(trace, *, least=1, most=4, policy=None, **options):
    scale = make_scale("demand", {"patience_ns": ns(5), "start_s": 2.0, "wake_s": 0.2, **(policy or {})})
    elasticity = Elasticity(scale=scale, cool_down_ns=ns(1), min_instances=least, max_instances=most)
    scheduler = ServingScheduler(make_routing("prefix_affinity"), 10**9, elasticity=elasticity, times=TIMES)
    options = {"start_ns": ns(10), "wake_ns": ns(1), **options}
    sim = SimOptions(EPD, limits_of(TIMES), lambda: make_batching("sarathi"), **options)
    backend, record = simulate(scheduler, trace, TIMES, sim)
    assert all(outcome.ok for outcome in backend.outcomes()), "nobody is lost"
    return backend, scheduler.counts, record


def test_where_load_falls_and_rises_sleep_spares_starts_and_waits():
    trace, found = waves(), {}
    for sleeps in (False, True):
        backend, counts, _ = scaled(trace, policy={"sleeps": sleeps})
        waited = sum(outcome.first_token_ns - outcome.arrived_ns for outcome in backend.outcomes())
        found[sleeps] = (counts["instances_started"], waited, counts)
    assert found[True][0] < found[False][0], "fewer starts"
    assert found[True][1] < found[False][1], "shorter waits"
    slept = found[True][2]
    assert slept["instance_sleeps"] >= 4 and slept["instance_wakes"] >= 2 and not slept["instances_stopped"]
    assert found[False][2]["instances_stopped"] >= 4 and not found[False][2]["instance_sleeps"]


def test_sleep_holds_no_device_and_who_sleeps_long_is_stopped():
    trace = waves(times=1)
    until_ns = trace.requests[-1].arrived_ns
    held = {}
    for name, most, policy in (("fixed", 1, {}), ("sleeps", 4, {}), ("stops", 4, {"stop_after_ns": ns(15)})):
        backend, counts, _ = scaled(trace, most=most, policy=policy)
        held[name] = backend.held_ns(until_ns)
        asleep = [each for each in backend.instances if not each.status().total_blocks]
        if name == "sleeps":
            assert asleep, "it has no blocks"
        if name == "stops":
            assert counts["instances_stopped"] and counts["instances_started"] > counts["instance_sleeps"] / 2
    assert held["fixed"] == until_ns
    assert until_ns < held["sleeps"] < 2.5 * until_ns


def test_waking_takes_its_time_and_the_request_waits_for_it():
    """Nobody is awake when the second request comes, half a minute after the first."""
    trace = trace_of(one(), one(at_ns=ns(30)))
    backend, counts, record = scaled(trace, least=0, most=1, wake_ns=ns(1.5))
    first, second = backend.outcomes()
    assert (counts["instance_sleeps"], counts["instance_wakes"], counts["instances_started"]) == (1, 1, 0)
    plain = first.first_token_ns - first.arrived_ns
    waited = second.first_token_ns - second.arrived_ns - plain
    assert waited == ns(1.5) + 2 * LATENCY_NS, "it is woken at once"
    asked = [action for _, _, actions in record.rows for action in actions]
    (wake,) = [each for each in asked if isinstance(each, WakeInstance)]
    assert (wake.instance, wake.roles) == ("i0", ALL_ROLES) and "1 requests wait" in wake.reason


def test_who_dies_asleep_is_not_replaced_and_another_is_started_for_the_next():
    trace = trace_of(one(), one(at_ns=ns(40)))
    kill = Kill(ns(30), "i0")
    backend, counts, _ = scaled(trace, least=0, most=1, kills=(kill,))
    assert (counts["instances_lost"], counts["instances_started"], counts["instance_wakes"]) == (1, 1, 0)
    assert [each.name for each in backend.instances] == ["i1"]


def test_what_can_never_fit_is_an_error():
    backend, _ = run(trace_of(one(text=2000), one()), EPD, limits=limits_of(TIMES, blocks=20))
    assert [outcome.outcome for outcome in backend.outcomes()] == ["error", "finished"]


def test_the_same_run_twice_is_the_same_to_the_bit():
    hashes = set()
    for _ in range(2):
        backend, record = run(made_up_trace(9, 60, 80.0), SPLIT)
        hashes.add(hashlib.sha256(repr((backend.outcomes(), record.rows)).encode()).hexdigest())
    assert len(hashes) == 1
    assert hashlib.sha256(repr(run(made_up_trace(8, 60, 80.0), SPLIT)[0].outcomes()).encode()).hexdigest() not in hashes


@pytest.mark.parametrize("roles", [EPD * 3, SPLIT], ids=["together", "split"])
def test_until_an_answer_ends_nobody_knows_how_long_it_will_be(roles):
    """The truth of one request is poisoned: everything is the same until the shorter of its two answers ends."""
    trace = made_up_trace(6, 60, 80.0)
    number = max(range(40), key=lambda each: trace.requests[each].output_tokens)
    honest = trace.requests[number]
    for poisoned in (max(1, honest.output_tokens // 2), 5000):
        requests = list(trace.requests)
        requests[number] = replace(honest, output_tokens=poisoned)
        runs = [run(each, roles) for each in (trace, replace(trace, requests=tuple(requests)))]
        end_ns = min(backend.outcomes()[number].finished_ns for backend, _ in runs)
        before = [[row for row in record.rows if row[0] < end_ns] for _, record in runs]
        assert before[0] == before[1]
        assert len(before[0]) > 100
        assert runs[0][1].rows != runs[1][1].rows


def test_a_deployment_of_nothing_is_refused():
    with pytest.raises(InvalidInput, match="one instance at least"):
        SimOptions((), limits_of(TIMES), lambda: make_batching("sarathi"))
    with pytest.raises(InvalidInput, match="cpu_workers 0"):
        SimOptions(EPD, limits_of(TIMES), lambda: make_batching("sarathi"), cpu_workers=0)
