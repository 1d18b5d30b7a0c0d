"""An instance falls asleep and wakes: what it does, what it says, and what becomes of what comes too late."""

import pytest
from msgspec import structs

from tierline.core.instance_actions import (
    AddSequence,
    DropEmbeddings,
    FreeMemory,
    RefuseMove,
    RunStep,
    SendEncodeFailure,
    TakeMemory,
    TellAsleep,
    TellAwake,
    TellEmbeddings,
    TellReturned,
)
from tierline.core.instance_events import (
    EmbeddingsArrived,
    EncodeAsked,
    EncodeEnded,
    MoveOffered,
    RequestCancelled,
    RequestQueued,
    RolesSet,
    SleepAsked,
    StepEnded,
    WakeAsked,
    WakeEnded,
)
from tierline.core.request import ALL_ROLES, Request, Role, Sampling
from tierline.policies.batching import make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_images import EVICTED
from tierline.schedulers.instance_state import InstanceLimits

LIMITS = InstanceLimits(blocks=8, block_tokens=4, token_budget=16, context_tokens=1000)
REQUEST = Request("a", tuple(range(9)), Sampling(1))


@pytest.fixture
def send():
    scheduler = InstanceScheduler("me", LIMITS, make_batching("sarathi"), ALL_ROLES)

    def send(event):
        return scheduler.handle(0, event)

    send.scheduler = scheduler
    return send


def answer_one(send, name, step):
    """A whole request; what it began with and what it found in the prefix cache."""
    actions = send(RequestQueued(structs.replace(REQUEST, request_id=name)))
    (begun,) = [each for each in actions if isinstance(each, RunStep)]
    send(StepEnded(step, ((name, 5),)))
    return begun.chunks[0].first


def test_asleep_it_has_given_up_its_memory_and_all_that_was_cached(send):
    assert answer_one(send, "a", 1) == 0 and answer_one(send, "b", 2) == 8
    send(EncodeAsked("x"))
    send(EncodeEnded("x", 10))
    send(RolesSet(Role(0)))
    assert send(SleepAsked()) == [DropEmbeddings(("x",)), TellEmbeddings((), ("x",)), FreeMemory(), TellAsleep()]
    status = send.scheduler.status()
    assert (status.free_blocks, status.total_blocks, status.pool_bytes) == (0, 0, 0)
    assert send(WakeAsked(ALL_ROLES)) == [TakeMemory()]
    assert send(WakeEnded()) == [TellAwake(ALL_ROLES)]
    assert send.scheduler.status().free_blocks == 8
    assert answer_one(send, "c", 3) == 0, "nothing is found that was there before"


def test_it_sleeps_only_when_it_has_nothing_to_do(send):
    send(RequestQueued(REQUEST))
    assert FreeMemory() not in send(SleepAsked())
    assert FreeMemory() not in send(RequestCancelled("a")), "the iteration is still under way"
    send(EncodeAsked("x"))
    assert FreeMemory() not in send(StepEnded(1, (("a", 5),))), "an image is encoded"
    assert send(EncodeEnded("x", 10))[-2:] == [FreeMemory(), TellAsleep()]


def test_woken_before_it_slept_it_keeps_what_it_has(send):
    send(EncodeAsked("x"))
    send(EncodeEnded("x", 10))
    send(RequestQueued(REQUEST))
    send(RolesSet(Role(0)))
    send(SleepAsked())
    roles = Role.parse("PD")
    assert send(WakeAsked(roles)) == [TellAwake(roles), TellEmbeddings(("x",), ())]
    assert send.scheduler.roles == roles
    assert FreeMemory() not in send(StepEnded(1, (("a", 5),)))
    assert answer_one(send, "b", 2) == 8


@pytest.mark.parametrize("woken", [False, True])
def test_what_comes_too_late_is_answered(send, woken):
    """Also while it takes its memory again."""
    send(SleepAsked())
    if woken:
        send(WakeAsked(ALL_ROLES))
    assert send(EncodeAsked("x", "peer")) == [SendEncodeFailure("x", "peer", EVICTED)]
    assert send(EncodeAsked("x")) == []
    assert send(EmbeddingsArrived("y", 10)) == [DropEmbeddings(("y",))]
    assert send(RequestQueued(REQUEST)) == [TellReturned("a", (), "it may not prefill")]
    assert send(MoveOffered(REQUEST, "peer", 4)) == [RefuseMove("a", "peer", "it may not decode")]
    assert send(SleepAsked()) == []


def test_the_last_roles_are_those_it_wakes_with(send):
    send(SleepAsked())
    assert send(WakeAsked(ALL_ROLES)) == [TakeMemory()]
    assert send(WakeAsked(Role.PREFILL)) == []
    assert send(WakeEnded()) == [TellAwake(Role.PREFILL)]
    assert any(isinstance(each, AddSequence) for each in send(RequestQueued(REQUEST)))
