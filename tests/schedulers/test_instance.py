"""The scheduler of one instance as a pure machine: events in, action lists out."""

from dataclasses import replace

import pytest

from tierline.core.instance_actions import (
    AddSequence,
    Chunk,
    DropEmbeddings,
    DropSequence,
    EncodeImage,
    RunStep,
    SendEmbeddings,
    SendEncodeFailure,
    TellEmbeddings,
    TellImagesNeeded,
    TellPrefilled,
    TellReturned,
    TellRoles,
    TellTokens,
)
from tierline.core.instance_events import (
    EmbeddingsArrived,
    EncodeAsked,
    EncodeEnded,
    EncodeFailed,
    PeerLost,
    RequestCancelled,
    RequestQueued,
    RolesSet,
    StepEnded,
)
from tierline.core.request import ALL_ROLES, ImageSpan, Request, Role, Sampling
from tierline.policies.batching import make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_images import EVICTED
from tierline.schedulers.instance_state import InstanceLimits

LIMITS = InstanceLimits(blocks=8, block_tokens=4, token_budget=16, context_tokens=1000, end_tokens=frozenset({99}))


class Instance:
    """One scheduler, whose clock stands still unless a test says otherwise."""

    def __init__(self, limits=LIMITS, roles=ALL_ROLES, policy="sarathi"):
        self.scheduler = InstanceScheduler("me", limits, make_batching(policy), roles)
        self.step = 0
        self.now_ns = 0

    def send(self, event):
        actions = self.scheduler.handle(self.now_ns, event)
        self.step += sum(isinstance(action, RunStep) for action in actions)
        return actions

    def queue(self, name, prompt, images=(), expected=(), made=(), priority=0, arrived_ns=0, **sampling):
        sampling = Sampling(**{"max_tokens": 9, **sampling})
        request = Request(name, tuple(prompt), sampling, images, priority, arrived_ns, made)
        return self.send(RequestQueued(request, expected))

    def end_step(self, **tokens):
        return self.send(StepEnded(self.step, tuple(tokens.items())))


def of(actions, *kinds):
    return [action for action in actions if isinstance(action, kinds)]


def chunks(actions):
    return [(c.request_id, c.first, c.tokens, c.samples) for step in of(actions, RunStep) for c in step.chunks]


def image(start, tokens=4, name="x"):
    return ImageSpan(name, start, tokens)


def test_an_answer_from_queue_to_end():
    me = Instance()
    actions = me.queue("a", [1, 2, 3, 4, 5], max_tokens=3)
    assert of(actions, AddSequence)[0].request.request_id == "a"
    assert actions[-1] == RunStep(1, (Chunk("a", 0, 5, (0, 1), fresh=True, samples=True),))
    assert me.end_step(a=7) == [
        TellTokens("a", 0, (7,)),
        RunStep(2, (Chunk("a", 5, 1, (), fresh=False, samples=True),)),
    ]
    me.end_step(a=8)
    assert me.end_step(a=9) == [DropSequence("a"), TellTokens("a", 2, (9,), "length")]
    assert me.scheduler.status().free_blocks == 8


def test_a_prompt_longer_than_the_budget_goes_in_chunks_and_only_the_last_draws():
    me = Instance()
    assert chunks(me.queue("a", range(20))) == [("a", 0, 16, False)]
    assert chunks(me.end_step()) == [("a", 16, 4, True)]


def test_without_chunks_it_goes_whole():
    me = Instance(policy="fcfs")
    assert chunks(me.queue("a", range(20))) == [("a", 0, 20, True)]


@pytest.mark.parametrize(
    ("sampling", "drawn", "finish"),
    [
        ({"stop_token_ids": (5,)}, [5], "stop"),
        ({"stop_token_ids": (5,), "ignore_eos": True}, [5], "stop"),
        ({}, [1, 99], "stop"),
        ({"ignore_eos": True, "max_tokens": 3}, [99, 99, 1], "length"),
        ({"min_tokens": 2, "stop_token_ids": (5,)}, [1, 5], "stop"),
        ({"min_tokens": 9, "max_tokens": 2}, [1, 2], "length"),
        ({"max_tokens": 1}, [1], "length"),
        ({"max_tokens": 1, "stop_token_ids": (5,)}, [5], "stop"),
    ],
)
def test_where_an_answer_ends(sampling, drawn, finish):
    me = Instance()
    me.queue("a", [1, 2, 3], **sampling)
    for token in drawn:
        actions = me.end_step(a=token)
    assert of(actions, TellTokens) == [TellTokens("a", len(drawn) - 1, (drawn[-1],), finish)]
    assert not of(actions, RunStep)


def test_an_answer_ends_at_the_context_and_at_the_arena():
    me = Instance(replace(LIMITS, context_tokens=5))
    me.queue("a", [1, 2, 3])
    me.end_step(a=1)
    assert of(me.end_step(a=1), TellTokens)[0].finish == "length"
    me = Instance(replace(LIMITS, blocks=1))
    me.queue("a", [1, 2])
    me.end_step(a=1)
    assert of(me.end_step(a=1), TellTokens)[0].finish == "length"


def test_what_can_never_fit_or_is_empty_is_an_error_at_once():
    me = Instance()
    for prompt in (range(32), ()):
        actions = me.queue("a", prompt)
        assert [(a.request_id, a.first, a.finish) for a in of(actions, TellTokens)] == [("a", 0, "error")]
        assert len(actions) == 1
    assert of(me.queue("b", range(31)), RunStep)


def test_tokens_made_elsewhere_are_computed_again_and_count_as_output():
    me = Instance()
    assert chunks(me.queue("a", [1, 2, 3], made=(4, 5), max_tokens=3)) == [("a", 0, 5, True)]
    assert of(me.end_step(a=6), TellTokens) == [TellTokens("a", 2, (6,), "length")]


def test_a_prefix_is_found_but_the_last_position_is_computed_always():
    me = Instance()
    me.queue("a", range(8), max_tokens=1)
    me.end_step(a=1)
    actions = me.queue("b", range(8), max_tokens=1)
    assert chunks(actions) == [("b", 4, 4, True)]
    assert of(me.end_step(b=1), TellTokens)[0].cached_tokens == 4
    assert chunks(me.queue("c", range(9), max_tokens=1)) == [("c", 8, 1, True)]


def test_two_share_a_prefix_while_one_is_preempted():
    me = Instance(replace(LIMITS, blocks=4))
    me.queue("a", range(7), arrived_ns=1)
    me.end_step(a=1)
    me.queue("b", range(7), arrived_ns=2)
    admitted = me.end_step(a=2)
    assert chunks(admitted) == [("a", 8, 1, True), ("b", 4, 3, True)]
    assert me.scheduler.status().free_blocks == 0
    actions = me.end_step(a=3, b=1)  # both go on in the blocks they have
    while not me.scheduler.status().preemptions:
        actions = me.end_step(**{name: 5 for name, *_ in chunks(actions)})
    assert [name for name, *_ in chunks(actions)] == ["a"], "b is the later one: it goes when one of them needs a block"
    while "b" not in [name for name, *_ in chunks(actions)]:
        actions = me.end_step(a=5)
    again = next(each for each in of(actions, RunStep)[0].chunks if each.request_id == "b")
    assert again.fresh and again.first >= 4, "the shared prefix is still there"


def test_higher_priority_goes_first_and_the_last_in_order_is_preempted():
    me = Instance(replace(LIMITS, blocks=2, sequence_limit=1))
    me.queue("a", range(4), arrived_ns=1, max_tokens=1)
    me.queue("b", range(4, 8), arrived_ns=2)
    me.queue("c", range(8, 12), arrived_ns=3, priority=1)
    assert [name for name, *_ in chunks(me.end_step(a=1))] == ["c"]


def test_cancelled_during_its_iteration_the_blocks_are_given_away_only_after_it():
    me = Instance(replace(LIMITS, prefix_caching=False))
    me.queue("a", range(8))
    assert me.send(RequestCancelled("a")) == [DropSequence("a")]
    assert me.scheduler.status().free_blocks == 6
    assert me.end_step(a=1) == []
    assert me.scheduler.status().free_blocks == 8


def test_no_more_sequences_run_than_may_even_when_many_were_held():
    me = Instance(replace(LIMITS, sequence_limit=2), roles=Role.PREFILL)
    for number in range(4):
        me.queue(f"a{number}", [number])
        me.end_step(**{f"a{number}": 1})
    assert me.scheduler.status().held == 4
    assert len(chunks(me.send(RolesSet(ALL_ROLES)))) == 2


# --- images


def test_a_prompt_is_computed_up_to_the_image_that_is_not_here_and_goes_on_when_it_is():
    me = Instance()
    actions = me.queue("a", [1, 2, 0, 0, 0, 0, 3], (image(2),))
    assert of(actions, TellImagesNeeded) == [TellImagesNeeded("a", ("x",))]
    assert chunks(actions) == [("a", 0, 2, False)]
    assert me.end_step() == []
    actions = me.send(EmbeddingsArrived("x", 10))
    assert of(actions, TellEmbeddings) == [TellEmbeddings(("x",), ())]
    assert chunks(actions) == [("a", 2, 5, True)]


def test_many_that_wait_for_their_first_image_hold_up_nobody():
    me = Instance()
    for number in range(60):
        me.queue(f"i{number}", [0] * 4, (image(0, name=f"x{number}"),), expected=(f"x{number}",))
    assert chunks(me.queue("a", [1, 2], arrived_ns=1)) == [("a", 0, 2, True)]


def test_an_image_that_is_expected_or_encoded_here_is_not_asked_for():
    me = Instance()
    assert not of(me.queue("a", [0] * 4, (image(0),), expected=("x",)), TellImagesNeeded)
    assert me.send(EncodeAsked("y")) == [EncodeImage("y")]
    assert not of(me.queue("b", [0] * 4, (image(0, name="y"),)), TellImagesNeeded)
    assert of(me.queue("c", [0] * 4, (image(0, name="z"),)), TellImagesNeeded)


@pytest.mark.parametrize("word", [EmbeddingsArrived("x", 10), EncodeFailed("x", "broken"), EncodeFailed("x", EVICTED)])
def test_an_expected_image_whose_word_came_first_is_asked_for_when_it_is_not_here(word):
    me = Instance(replace(LIMITS, pool_bytes=0))
    me.send(word)
    assert of(me.queue("a", [0] * 4, (image(0),), expected=("x",)), TellImagesNeeded)


def test_old_word_of_an_image_is_not_taken_for_that():
    me = Instance(replace(LIMITS, pool_bytes=0))
    me.send(EmbeddingsArrived("x", 10))
    me.now_ns = 11 * 10**9
    assert not of(me.queue("a", [0] * 4, (image(0),), expected=("x",)), TellImagesNeeded)


def test_an_image_that_cannot_be_encoded_ends_whoever_waits_for_it_with_the_reason():
    me = Instance()
    me.queue("a", [1, 0, 0, 0, 0], (image(1),), expected=("x",))
    me.queue("b", [1, 2])
    actions = me.send(EncodeFailed("x", "it is no picture"))
    assert of(actions, TellTokens) == [
        TellTokens("a", 0, (), "error", reason="an image could not be encoded: it is no picture")
    ]
    assert chunks(me.end_step()) == [("b", 0, 2, True)]


def test_an_image_given_up_by_the_peer_meanwhile_is_asked_for_again():
    me = Instance()
    me.queue("a", [0] * 4, (image(0),), expected=("x",))
    assert me.send(EncodeFailed("x", EVICTED)) == [TellImagesNeeded("a", ("x",))]


def test_an_image_behind_a_cached_prefix_is_not_needed_until_the_prefix_is_given_up():
    me = Instance(replace(LIMITS, blocks=4, pool_bytes=0))
    me.send(EncodeAsked("x"))
    me.queue("a", [0] * 4 + [1], (image(0),), max_tokens=1)
    me.send(EncodeEnded("x", 10))
    assert of(me.end_step(a=1), DropEmbeddings)
    me.queue("big", range(10, 22))  # holds three blocks; the cached one is idle
    actions = me.queue("b", [0] * 4 + [2, 3, 4, 5, 6], (image(0),), arrived_ns=1)
    assert not of(actions, TellImagesNeeded)
    actions = me.end_step(big=1)  # its next block is the cached one
    assert of(actions, TellImagesNeeded) == []
    asked = [of(me.end_step(big=1), TellImagesNeeded) for _ in range(2)]
    assert [TellImagesNeeded("b", ("x",))] in asked


def test_the_same_tokens_with_another_image_are_no_prefix():
    me = Instance()
    for name in "xy":
        me.send(EncodeAsked(name))
        me.send(EncodeEnded(name, 10))
    me.queue("a", [0] * 8, (image(0, 8),), max_tokens=1)
    me.end_step(a=1)
    assert chunks(me.queue("b", [0] * 8, (image(0, 8, "y"),), max_tokens=1)) == [("b", 0, 8, True)]
    me.end_step(b=1)
    assert chunks(me.queue("c", [0] * 8, (image(0, 8),), max_tokens=1)) == [("c", 4, 4, True)]


def test_the_encoder_does_one_after_the_other_and_delivers_to_all_who_asked():
    me = Instance(replace(LIMITS, pool_bytes=0))
    assert me.send(EncodeAsked("x", "p")) == [EncodeImage("x")]
    assert me.send(EncodeAsked("x", "q")) == me.send(EncodeAsked("y", "q")) == []
    assert me.send(EncodeEnded("x", 10)) == [
        SendEmbeddings("x", "p"),
        SendEmbeddings("x", "q"),  # before a pool without room gives it up
        TellEmbeddings(("x",), ()),
        DropEmbeddings(("x",)),
        TellEmbeddings((), ("x",)),
        EncodeImage("y"),
    ]
    assert me.send(EncodeEnded("y", 0, "broken")) == [SendEncodeFailure("y", "q", "broken")]


def test_embeddings_in_the_pool_are_delivered_without_encoding_and_not_to_the_dead():
    me = Instance()
    me.send(EncodeAsked("x"))
    me.send(EncodeEnded("x", 10))
    assert me.send(EncodeAsked("x", "p")) == [SendEmbeddings("x", "p")]
    assert me.send(EncodeAsked("x", "me")) == []
    me.send(EncodeAsked("y", "p"))
    me.send(PeerLost("p"))
    assert not of(me.send(EncodeEnded("y", 10)), SendEmbeddings)


# --- roles


def test_without_prefill_requests_are_given_back():
    me = Instance(roles=Role.DECODE)
    assert me.queue("a", [1], made=(2,)) == [TellReturned("a", (2,), "it may not prefill")]
    me = Instance(replace(LIMITS, sequence_limit=1))
    me.queue("a", range(20))
    me.queue("b", [1])
    actions = me.send(RolesSet(Role.DECODE))
    assert actions == [
        TellReturned("b", (), "it may no longer prefill"), DropSequence("b"), TellRoles(Role.DECODE, by_batch=False),
    ]  # fmt: skip
    assert chunks(me.end_step()) == [("a", 16, 4, True)], "what was begun is brought to its end"


def test_without_decode_a_sequence_waits_after_its_first_token_and_goes_on_when_it_may():
    me = Instance(roles=Role.PREFILL)
    me.queue("a", [1, 2])
    assert me.end_step(a=5) == [TellTokens("a", 0, (5,)), TellPrefilled("a")]
    actions = me.send(RolesSet(ALL_ROLES))
    assert chunks(actions) == [("a", 2, 1, True)]
    assert of(actions, TellRoles) == [TellRoles(ALL_ROLES, by_batch=False)]
    assert not of(me.send(RolesSet(Role.PREFILL)), TellPrefilled), "it is in an iteration"
    assert me.end_step(a=6) == [TellTokens("a", 1, (6,)), TellPrefilled("a")]


def test_a_new_role_is_confirmed_by_its_first_batch():
    me = Instance(roles=Role.PREFILL)
    assert me.send(RolesSet(ALL_ROLES)) == [TellRoles(ALL_ROLES, by_batch=False)]
    assert not of(me.send(EncodeAsked("x")), TellRoles), "decode is still to be shown"
    me.queue("a", [1])
    assert of(me.end_step(a=1), TellRoles) == [TellRoles(ALL_ROLES, by_batch=True)]


def test_preempted_where_it_may_not_prefill_a_sequence_is_given_back_with_all_its_tokens():
    me = Instance(replace(LIMITS, blocks=4))
    me.queue("a", range(7), arrived_ns=1)
    me.queue("b", range(10, 17), arrived_ns=2)
    me.end_step(a=1)
    me.send(RolesSet(Role.DECODE))
    actions = me.end_step(a=2, b=3)
    returned = of(actions, TellReturned)
    assert [(each.request_id, each.made) for each in returned] == [("b", (3,))]
    assert [name for name, *_ in chunks(actions)] == ["a"]
