"""A sequence goes from one instance to another: both sides as pure machines, every message passed by hand."""

from dataclasses import replace

import pytest

from tierline.core.instance_actions import (
    AcceptMove,
    AddSequence,
    CancelMove,
    ConfirmMove,
    ConfirmRound,
    DropSequence,
    ImportRound,
    OfferMove,
    RefuseMove,
    RunStep,
    SendRound,
    TellMoved,
    TellMoveFailed,
    TellPrefilled,
    TellTokens,
)
from tierline.core.instance_events import (
    MoveAccepted,
    MoveAsked,
    MoveCancelled,
    MoveOffered,
    MoveRefused,
    MoveTaken,
    PeerLost,
    RequestCancelled,
    RequestQueued,
    RolesSet,
    RoundArrived,
    RoundTaken,
    StepEnded,
)
from tierline.core.request import ALL_ROLES, Request, Role, Sampling
from tierline.policies.batching import make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_state import InstanceLimits

LIMITS = InstanceLimits(blocks=12, block_tokens=4, token_budget=64)


class Instance:
    def __init__(self, limits=LIMITS, roles=ALL_ROLES):
        self.scheduler = InstanceScheduler("me", limits, make_batching("sarathi"), roles)
        self.step = 0

    def send(self, event):
        actions = self.scheduler.handle(0, event)
        self.step += sum(isinstance(action, RunStep) for action in actions)
        return actions

    def end_step(self, **tokens):
        return self.send(StepEnded(self.step, tuple(tokens.items())))

    @property
    def free(self):
        return self.scheduler.status().free_blocks


def request(tokens=6, made=(), max_tokens=50):
    return Request("a", tuple(range(tokens)), Sampling(max_tokens), made=made)


def of(actions, *kinds):
    return [action for action in actions if isinstance(action, kinds)]


def names(actions):
    return [chunk.request_id for step in of(actions, RunStep) for chunk in step.chunks]


def decoding(tokens=6, **options):
    """An instance whose sequence `a` has made one token and is in its first decode."""
    me = Instance(**options)
    me.send(RequestQueued(request(tokens)))
    me.end_step(a=70)
    return me


def held(tokens=6):
    me = decoding(tokens, roles=Role.PREFILL)
    assert me.scheduler.status().held == 1
    return me


def target(tokens=6, **options):
    """An instance that has accepted `a`."""
    me = Instance(**options)
    assert of(me.send(MoveOffered(request(tokens, (70,)), "src", tokens)), AcceptMove)
    return me


# --- the source


def test_a_held_sequence_is_sent_in_one_round_and_let_go_when_it_is_taken():
    me = held()
    assert me.send(MoveAsked("a", "dst")) == [OfferMove(request(made=(70,)), "dst", 6)]
    assert me.send(MoveAccepted("a", "dst", 0)) == [SendRound("a", "dst", 0, 6, (0, 1), (70,), final=True)]
    assert me.free == 10
    assert me.send(MoveTaken("a", "dst")) == [DropSequence("a")]
    assert me.free == 12


def test_what_the_peer_has_of_the_prefix_is_not_sent():
    me = held(tokens=9)
    me.send(MoveAsked("a", "dst"))
    assert me.send(MoveAccepted("a", "dst", 8)) == [SendRound("a", "dst", 8, 9, (2,), (70,), final=True)]


def test_a_running_sequence_decodes_on_during_full_rounds_and_stands_still_for_the_last():
    me = decoding(tokens=14)
    me.send(MoveAsked("a", "dst"))
    assert me.send(MoveAccepted("a", "dst", 0)) == [], "its iteration is under way"
    actions = me.end_step(a=71)
    assert of(actions, SendRound) == [SendRound("a", "dst", 0, 12, (0, 1, 2), (70, 71), final=False)]
    assert names(actions) == ["a"]
    assert me.send(RoundTaken("a", "dst", 12)) == []
    actions = me.end_step(a=72)
    assert of(actions, SendRound) == [SendRound("a", "dst", 12, 16, (3,), (70, 71, 72), final=True)]
    assert names(actions) == []


def test_one_that_is_on_its_way_is_not_sent_elsewhere():
    me = held()
    me.send(MoveAsked("a", "dst"))
    assert me.send(MoveAsked("a", "dst")) == [], "asked twice"
    (failed,) = me.send(MoveAsked("a", "other"))
    assert isinstance(failed, TellMoveFailed) and (failed.to, failed.reason) == ("other", "it is on its way elsewhere")


def test_only_a_sequence_past_its_prompt_is_moved():
    me = Instance(replace(LIMITS, token_budget=4))
    me.send(RequestQueued(request(made=(70, 71))))  # computed anew after a loss: it has output, but is not past it
    assert me.send(MoveAsked("a", "dst")) == [TellMoveFailed("a", "dst", "its prompt is not done")]
    assert me.send(MoveAsked("nobody", "dst")) == []


def test_a_refused_sequence_goes_on():
    me = held()
    me.send(MoveAsked("a", "dst"))
    assert me.send(MoveRefused("a", "dst", "full")) == [TellMoveFailed("a", "dst", "full")]
    assert of(me.send(MoveAsked("a", "other")), OfferMove)
    me.send(MoveAccepted("a", "other", 0))
    assert me.send(MoveRefused("a", "other", "full")) == [TellMoveFailed("a", "other", "full"), TellPrefilled("a")]


@pytest.mark.parametrize("roles", [ALL_ROLES, Role.PREFILL])
def test_the_source_keeps_everything_until_the_target_has_said_so(roles):
    me = held()
    me.send(MoveAsked("a", "dst"))
    me.send(MoveAccepted("a", "dst", 0))
    me.send(RolesSet(roles))
    actions = me.send(PeerLost("dst"))
    assert of(actions, TellMoveFailed) == [TellMoveFailed("a", "dst", "instance dst was lost")]
    assert names(actions) == (["a"] if roles == ALL_ROLES else [])
    assert me.send(MoveTaken("a", "dst")) == [], "its last word comes too late"


def test_an_answer_that_ends_during_its_move_calls_the_move_off():
    me = Instance()
    me.send(RequestQueued(request(max_tokens=2)))
    me.end_step(a=70)
    me.send(MoveAsked("a", "dst"))
    actions = me.end_step(a=71)
    assert of(actions, CancelMove, TellTokens) == [CancelMove("a", "dst"), TellTokens("a", 1, (71,), "length")]
    assert me.send(MoveAccepted("a", "dst", 0)) == [CancelMove("a", "dst")]


def test_a_cancelled_request_is_cancelled_on_both_sides():
    me = held()
    me.send(MoveAsked("a", "dst"))
    me.send(MoveAccepted("a", "dst", 0))
    assert me.send(RequestCancelled("a")) == [CancelMove("a", "dst"), DropSequence("a")]
    assert me.send(MoveTaken("a", "dst")) == []
    assert me.free == 12


def test_an_answer_to_a_move_given_up_is_not_taken_for_one_to_the_next():
    me = Instance(replace(LIMITS, blocks=5))
    me.send(RequestQueued(request(7)))
    me.send(RequestQueued(Request("b", (90,) * 7, Sampling(9), priority=1)))
    me.end_step(a=70)
    me.send(MoveAsked("a", "dst"))
    assert names(me.end_step(a=71, b=1)) == ["a", "b"]
    actions = me.end_step(a=72, b=2)  # b needs a block, and is worth more
    assert of(actions, CancelMove) and names(actions) == ["b"]
    me.send(RequestCancelled("b"))
    assert names(me.end_step()) == ["a"]
    me.end_step(a=73)
    assert me.send(MoveAsked("a", "dst")) == [TellMoveFailed("a", "dst", "it has not answered an earlier offer")]
    me.send(MoveAccepted("a", "dst", 4))
    assert of(me.send(MoveAsked("a", "dst")), OfferMove)


# --- the target


def test_the_target_reserves_room_takes_rounds_and_owns_the_sequence_after_the_last():
    me = Instance()
    offered = request(14, (70,))
    actions = me.send(MoveOffered(offered, "src", 14))
    assert actions == [AddSequence(offered), AcceptMove("a", "src", 0)]
    assert me.free == 8
    assert me.send(RoundArrived("a", "src", 0, 12, (70, 71), final=False)) == [
        ImportRound("a", 0, 12, (0, 1, 2)),
        ConfirmRound("a", "src", 12),
    ]
    actions = me.send(RoundArrived("a", "src", 12, 17, (70, 71, 72, 73), final=True))
    assert actions[:3] == [ImportRound("a", 12, 17, (3, 4)), ConfirmMove("a", "src"), TellMoved("a", "src")]
    (chunk,) = actions[3].chunks
    assert (chunk.first, chunk.tokens, chunk.new_blocks, chunk.fresh) == (17, 1, (0, 1, 2, 3, 4), True)
    assert of(me.end_step(a=74), TellTokens) == [TellTokens("a", 4, (74,))]


def test_the_target_counts_on_a_prefix_it_has():
    me = Instance()
    me.send(RequestQueued(Request("b", tuple(range(8)), Sampling(1))))
    me.end_step(b=1)
    assert of(me.send(MoveOffered(request(9, (70,)), "src", 9)), AcceptMove) == [AcceptMove("a", "src", 8)]


def test_an_arrived_prefix_is_found_by_others():
    me = target(tokens=9)
    me.send(RoundArrived("a", "src", 0, 9, (70,), final=True))
    me.send(RequestQueued(Request("b", tuple(range(9)), Sampling(1))))
    (step,) = of(me.end_step(a=71), RunStep)
    assert [(c.request_id, c.first) for c in step.chunks] == [("a", 10), ("b", 8)]


def test_refusals_leave_nothing_behind():
    small = Instance(replace(LIMITS, blocks=1))
    assert of(small.send(MoveOffered(request(6, (70,)), "src", 6)), RefuseMove)
    assert (small.free, small.scheduler.status().waiting) == (1, 0)
    for me in (Instance(roles=Role.PREFILL), Instance(replace(LIMITS, sequence_limit=0)), target()):
        free = me.free
        (refused,) = me.send(MoveOffered(request(6, (70,)), "other", 6))
        assert isinstance(refused, RefuseMove) and refused.to == "other"
        assert me.free == free


def test_a_target_without_room_for_the_rest_gives_the_attempt_back():
    me = target(limits=replace(LIMITS, blocks=2))
    made = tuple(range(70, 74))
    assert me.send(RoundArrived("a", "src", 0, 9, made, final=True)) == [
        DropSequence("a"),
        RefuseMove("a", "src", "it has no KV blocks left"),
    ]
    assert me.free == 2


@pytest.mark.parametrize("end", [PeerLost("src"), MoveCancelled("a", "src"), RequestCancelled("a")])
def test_an_arriving_sequence_goes_with_its_source(end):
    me = target()
    assert me.send(end) == [DropSequence("a")]
    assert me.free == 12
    assert me.send(RoundArrived("a", "src", 0, 6, (70,), final=True)) == []


def test_a_cancelled_move_means_only_what_comes_from_that_peer():
    me = target()
    assert me.send(MoveCancelled("a", "other")) == []
    me.send(RoundArrived("a", "src", 0, 6, (70,), final=True))
    assert me.send(MoveCancelled("a", "other")) == []
    assert names(me.end_step(a=71)) == ["a"]


def test_a_target_that_may_no_longer_decode_holds_what_arrives():
    me = target()
    me.send(RolesSet(Role.PREFILL))
    actions = me.send(RoundArrived("a", "src", 0, 6, (70,), final=True))
    assert of(actions, TellMoved, TellPrefilled) == [TellMoved("a", "src"), TellPrefilled("a")]
    assert of(me.send(MoveAsked("a", "dst")), OfferMove)[0].request.made == (70,)
