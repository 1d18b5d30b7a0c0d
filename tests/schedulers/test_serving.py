"""The serving scheduler's rules, each by the actions it answers events with."""

import pytest

from tierline.core.errors import Overloaded
from tierline.core.instance_actions import (
    TellEmbeddings,
    TellImagesNeeded,
    TellMoved,
    TellMoveFailed,
    TellPrefilled,
    TellProgress,
    TellReturned,
    TellRoles,
    TellStatus,
    TellTokens,
)
from tierline.core.request import ImageSpan, Request, Role, Sampling
from tierline.core.serving_actions import (
    Answer,
    AskPixels,
    CancelAttempt,
    EncodeOn,
    MoveAttempt,
    NotifyLost,
    QueueAttempt,
    RecordServingRefusal,
    SetRoles,
)
from tierline.core.serving_events import (
    InstanceJoined,
    InstanceLost,
    InstanceSaid,
    MoveWanted,
    RequestAbandoned,
    RequestSubmitted,
    RolesAsked,
    Tick,
)
from tierline.core.slo import Slo
from tierline.policies.routing import make_routing
from tierline.schedulers.serving import ServingScheduler
from tierline.schedulers.serving_attempts import MAX_LOSSES

STATUS = TellStatus(1, 0, 0, 0, 50, 100, 0, 0, 0, 0, 0, 1)


class Told:
    """A scheduler with instances `a`, `b`, ... of these roles."""

    def __init__(self, layout, **options):
        self.scheduler = ServingScheduler(make_routing("least_loaded"), **options)
        self.names = "abcdefgh"[: len(layout.split())]
        for name, letters in zip(self.names, layout.split(), strict=True):
            self.send(InstanceJoined(name, Role.parse(letters)))

    def send(self, event):
        return self.scheduler.handle(0, event)

    def submit(self, name="r", images="", pixels=None, made=()):
        spans = tuple(ImageSpan(each, 2 * place, 2) for place, each in enumerate(images))
        request = Request(name, (1,) * 10, Sampling(20), spans, made=made)
        return self.send(RequestSubmitted(request, tuple(images if pixels is None else pixels)))

    def say(self, name, message):
        return self.send(InstanceSaid(name, message))

    def owner(self, name="r"):
        return self.scheduler.live_request(name).owner

    def counts(self, name):
        server = self.scheduler.servers[name]
        return server.prefill_tokens, server.decoding, server.encoding


def kinds(actions):
    return [type(action) for action in actions]


def tokens(attempt, first, *made, finish=None):
    return TellTokens(attempt, first, made, finish)


def lose(told, name):
    return told.send(InstanceLost(name, "killed"))


def test_a_request_goes_where_fewest_prompt_tokens_wait():
    told = Told("EPD EPD")
    (first,), (second,) = told.submit("r"), told.submit("s")
    assert (first.instance, second.instance) == ("a", "b")
    assert first.request.request_id == "r#1" and told.counts("a") == (10, 0, 0)


def test_tokens_are_told_and_counted_and_an_end_frees_all():
    told = Told("EPD")
    told.submit()
    (answer,) = told.say("a", tokens("r#1", 0, 7))
    assert (answer.tokens.request_id, answer.tokens.first, answer.tokens.tokens) == ("r", 0, (7,))
    assert told.counts("a") == (0, 1, 0)
    (answer,) = told.say("a", tokens("r#1", 1, 8, finish="stop"))
    assert answer.tokens.finish == "stop" and told.counts("a") == (0, 0, 0) and not told.scheduler.live


def test_progress_of_several_is_told_as_if_each_had_been_told():
    one_by_one, at_once = Told("EPD"), Told("EPD")
    for told in (one_by_one, at_once):
        for attempt in ("r#1", "s#2"):
            told.submit(attempt[0])
            told.say("a", tokens(attempt, 0, 7))
    words = (tokens("r#1", 1, 8, 9), tokens("s#2", 1, 6), tokens("t#3", 0, 5))
    answers = at_once.say("a", TellProgress(words))
    assert answers == [action for word in words for action in one_by_one.say("a", word)]
    assert [kinds(answers), answers[0].tokens.tokens] == [[Answer, Answer, CancelAttempt], (8, 9)]
    contexts = [told.scheduler.servers["a"].context_tokens for told in (one_by_one, at_once)]
    assert contexts[0] == contexts[1] == 2 * 10 + 2 + 3


def test_an_image_is_encoded_beside_and_the_attempt_expects_it():
    told = Told("E PD")
    queue, encode = told.submit(images="x")
    assert queue == QueueAttempt("b", queue.request, ("x",), "new")
    assert encode == EncodeOn("a", "x", "b", "r", "it may encode") and told.counts("a") == (0, 0, 1)
    told.say("b", TellEmbeddings(("x",), ()))
    assert told.counts("a") == (0, 0, 0) and told.scheduler.has_embeddings("x")


def test_images_of_one_request_are_spread_over_encoders():
    actions = Told("E E PD").submit(images="xy")
    assert [each.instance for each in actions if isinstance(each, EncodeOn)] == ["a", "b"]


def test_an_image_under_way_is_not_encoded_twice_and_one_that_is_there_not_at_all():
    told = Told("E PD")
    told.submit("r", "x")
    (queue,) = told.submit("s", "x", pixels="")
    assert queue.expected == ("x",)
    told.say("b", TellEmbeddings(("x",), ()))
    (queue,) = told.submit("t", "x", pixels="")
    assert queue.expected == () and told.scheduler.image_hits == 2


def test_embeddings_come_from_who_has_them_without_pixels():
    told = Told("E P PD")
    told.say("b", TellEmbeddings(("x",), ()))
    told.submit("other")
    encode = told.submit("r", "x", pixels="")[1]
    assert encode == EncodeOn("b", "x", "c", "", "it has the embeddings")


def test_lacking_pixels_are_asked_for_and_the_request_is_forgotten():
    told = Told("EPD")
    assert told.submit(images="x", pixels="") == [AskPixels("r", ("x",))]
    assert not told.scheduler.live and told.counts("a") == (0, 0, 0)
    queue, encode = told.submit(images="x", made=(7, 8))
    assert queue.request.made == (7, 8) and encode.pixels_of == "r"


def test_lacking_pixels_of_an_attempt_under_way_end_it():
    told = Told("E PD")
    told.say("b", TellEmbeddings(("x",), ()))
    told.submit(images="x", pixels="")
    actions = told.say("b", TellImagesNeeded("r#1", ("x",)))
    assert actions == [CancelAttempt("b", "r#1"), AskPixels("r", ("x",))] and told.counts("b") == (0, 0, 0)


def test_images_that_did_not_come_are_encoded_again_once_for_all_who_wait():
    told = Told("E PD")
    told.submit("r", "x")
    told.submit("s", "x")
    assert kinds(told.say("b", TellImagesNeeded("r#1", ("x",)))) == [EncodeOn]
    assert told.say("b", TellImagesNeeded("s#2", ("x",))) == []
    assert told.counts("a") == (0, 0, 1)


def test_a_flight_whose_requests_were_all_abandoned_is_waited_for_by_nobody():
    told = Told("E PD")
    told.submit("r", "x")
    assert told.send(RequestAbandoned("r")) == [CancelAttempt("b", "r#1")]
    assert told.counts("a") == (0, 0, 0) and not told.scheduler.has_embeddings("x")
    assert kinds(told.submit("s", "x")) == [QueueAttempt, EncodeOn]
    told.say("b", TellEmbeddings(("x",), ()))  # the first one's, still encoded
    assert told.counts("a") == (0, 0, 0)


def test_before_an_encoder_has_joined_requests_with_images_wait():
    told = Told("PD")
    assert told.submit("r", "x") == [] and kinds(told.submit("s")) == [QueueAttempt]
    assert kinds(told.send(InstanceJoined("e", Role.ENCODE))) == [QueueAttempt, EncodeOn]


def test_a_request_waits_for_an_instance_and_may_be_abandoned_there():
    told = Told("")
    assert told.submit("r") == told.submit("s") == told.send(RequestAbandoned("s")) == []
    (queue,) = told.send(InstanceJoined("a", Role.parse("EPD")))
    assert queue.request.request_id == "r#1"


def test_a_lost_encoders_images_to_several_targets_are_encoded_by_another():
    told = Told("E P P E D")
    told.submit("r", "x")
    told.send(RolesAsked("d", Role.parse("ED")))
    first = told.submit("s", "x")[1]
    told.submit("t", "x", pixels="")
    lost = "a"
    assert (first.to, told.counts("a")[2] + told.counts("d")[2]) == ("c", 2)
    encodes = [each for each in lose(told, lost) if isinstance(each, EncodeOn)]
    assert encodes and {each.instance for each in encodes} == {"d"} and told.counts("d")[2] == 2


def test_who_has_pixels_is_asked_for_them_before_others_are_given_up():
    told = Told("E PD E")
    told.say("a", TellEmbeddings(("x",), ()))
    told.submit("r", "x", pixels="")
    told.submit("s", "x")
    encodes = [each for each in lose(told, "a") if isinstance(each, EncodeOn | AskPixels)]
    assert encodes == [EncodeOn("c", "x", "b", "s", "it may encode")]


def test_a_prompt_that_is_done_moves_to_a_decoder():
    told = Told("EP D")
    told.submit()
    told.say("a", tokens("r#1", 0, 7))
    (move,) = told.say("a", TellPrefilled("r#1"))
    assert move == MoveAttempt("a", "r#1", "b", "its prompt is done")
    assert (told.counts("a"), told.counts("b")) == ((0, 1, 0), (0, 1, 0))
    assert told.say("b", TellMoved("r#1", "a")) == []
    assert (told.counts("a"), told.counts("b"), told.owner()) == ((0, 0, 0), (0, 1, 0), "b")


def moving(layout="EP D EPD"):
    told = Told(layout)
    told.submit()
    told.say("a", tokens("r#1", 0, 7))
    told.say("a", TellPrefilled("r#1"))
    return told


def test_a_refused_move_is_tried_elsewhere_then_waits_for_news():
    told = moving()
    (move,) = told.say("a", TellMoveFailed("r#1", "b", "full"))
    assert move.to == "c" and told.counts("b") == (0, 0, 0)
    assert told.say("a", TellMoveFailed("r#1", "c", "full")) == [] and told.counts("c") == (0, 0, 0)
    assert told.say("a", STATUS) == []  # who may not decode has no news for it
    (move,) = told.say("b", STATUS)
    assert move.to == "b"


def test_news_of_room_that_overtakes_a_refusal_is_not_lost():
    told = moving("EP D")
    assert told.say("b", STATUS) == []
    (move,) = told.say("a", TellMoveFailed("r#1", "b", "full"))
    assert move.to == "b"
    assert told.say("a", TellMoveFailed("r#1", "b", "full")) == []


def test_a_failed_move_that_was_asked_for_leaves_it_where_it_is():
    told = Told("EPD EPD")
    told.submit()
    told.say("a", tokens("r#1", 0, 7))
    assert told.send(MoveWanted("r", "b")) == [MoveAttempt("a", "r#1", "b", "asked for")]
    assert told.say("a", TellMoveFailed("r#1", "b", "full")) == told.say("b", STATUS) == []
    assert (told.counts("a"), told.counts("b")) == ((0, 1, 0), (0, 0, 0))


@pytest.mark.parametrize(("request_id", "to"), [("nobody", "a"), ("r", "nobody"), ("r", "a"), ("s", "b"), ("r", "c")])
def test_moves_that_cannot_be_are_refused(request_id, to):
    told = Told("EPD EPD P")
    told.submit("r")
    told.submit("s")
    told.say("a", tokens("r#1", 0, 7))
    assert kinds(told.send(MoveWanted(request_id, to))) == [RecordServingRefusal]


def test_a_preemption_ends_a_move_in_silence_so_it_is_asked_for_again():
    told = moving("EP D")
    assert kinds(told.say("a", TellPrefilled("r#1"))) == [MoveAttempt] and told.counts("b") == (0, 1, 0)


def test_a_move_that_was_asked_for_twice_may_succeed_the_second_time():
    """The first order was refused and another target was named, while the second was on its way to the instance."""
    told = moving()
    told.say("a", TellPrefilled("r#1"))
    (move,) = told.say("a", TellMoveFailed("r#1", "b", "full"))
    assert move.to == "c"
    assert told.say("b", TellMoved("r#1", "a")) == []
    assert [told.counts(name) for name in "abc"] == [(0, 0, 0), (0, 1, 0), (0, 0, 0)] and told.owner() == "b"
    assert told.say("a", TellMoveFailed("r#1", "c", "it is on its way elsewhere")) == []
    assert told.say("c", TellMoved("r#1", "nobody")) == [CancelAttempt("c", "r#1")]


def test_tokens_of_a_moving_attempt_are_told_in_order():
    told = moving()
    told.say("b", TellMoved("r#1", "a"))
    assert told.say("b", tokens("r#1", 2, 9)) == []
    assert [each.tokens.tokens for each in told.say("a", tokens("r#1", 1, 8))] == [(8,), (9,)]


def test_words_lost_with_an_instance_that_had_the_attempt_before_are_made_anew():
    told = moving()
    told.say("b", TellMoved("r#1", "a"))
    told.say("b", tokens("r#1", 2, 9))
    cancel, queue = [each for each in lose(told, "a") if isinstance(each, CancelAttempt | QueueAttempt)]
    assert (cancel, queue.request.made) == (CancelAttempt("b", "r#1"), (7,))


def test_the_gap_may_be_seen_after_the_loss():
    told = moving()
    told.say("b", TellMoved("r#1", "a"))
    assert CancelAttempt("b", "r#1") not in lose(told, "a")
    assert kinds(told.say("b", tokens("r#1", 2, 9))) == [CancelAttempt, QueueAttempt]


def test_a_lost_instances_requests_go_on_elsewhere_with_what_was_told():
    told = Told("EPD EPD")
    told.submit()
    told.say("a", tokens("r#1", 0, 7))
    notify, queue = lose(told, "a")
    assert notify == NotifyLost("b", "a")
    assert (queue.instance, queue.request.request_id, queue.request.made) == ("b", "r#2", (7,))
    assert told.counts("b") == (11, 0, 0)


@pytest.mark.parametrize("lost", ["a", "b"])
def test_a_move_with_a_lost_end_begins_anew_and_the_other_end_is_called_off(lost):
    told = moving()
    actions = lose(told, lost)
    assert CancelAttempt("b" if lost == "a" else "a", "r#1") in actions and QueueAttempt in kinds(actions)
    assert kinds(told.say("c", TellMoved("r#1", "a"))) == [CancelAttempt]  # a word of an attempt that is over


def test_a_request_that_seems_to_kill_instances_ends_with_an_error():
    told = Told("EPD " * 7)
    told.submit()
    for _ in range(MAX_LOSSES - 1):
        lose(told, told.owner())
    (answer,) = [each for each in lose(told, told.owner()) if isinstance(each, Answer)]
    assert answer.tokens.finish == "error" and f"{MAX_LOSSES} instances" in answer.tokens.reason
    assert not told.scheduler.live


def test_an_attempt_given_back_goes_elsewhere():
    told = Told("EPD EPD")
    told.submit()
    told.send(RolesAsked("a", Role.DECODE))
    (queue,) = told.say("a", TellReturned("r#1", (), "it may no longer prefill"))
    assert (queue.instance, queue.request.request_id, told.counts("a")) == ("b", "r#2", (0, 0, 0))


def test_words_of_attempts_that_are_over_change_nothing():
    told = Told("EPD EPD")
    told.submit()
    lose(told, "a")
    for word in (TellPrefilled("r#1"), TellReturned("r#1", (), ""), tokens("r#1", 0, 7), TellImagesNeeded("r#1", "x")):
        assert told.say("b", word) == [CancelAttempt("b", "r#1")]
    assert told.say("a", tokens("r#1", 0, 7)) == []  # nor those of the dead
    assert told.counts("b") == (10, 0, 0)


def test_attempts_of_a_request_that_comes_again_have_new_names():
    told = Told("EPD")
    told.submit()
    told.send(RequestAbandoned("r"))
    assert told.submit()[0].request.request_id == "r#2"


def test_who_is_moving_is_called_off_at_both_ends():
    told = moving()
    assert told.send(RequestAbandoned("r")) == [CancelAttempt("a", "r#1"), CancelAttempt("b", "r#1")]
    assert told.counts("a") == told.counts("b") == (0, 0, 0)


def test_a_stage_that_only_the_lost_did_is_taken_over_and_given_back():
    told = Told("E P D")
    assert SetRoles("a", Role.parse("EP"), "no other instance may do P") in lose(told, "b")
    actions = told.send(InstanceJoined("b~1", Role.PREFILL))
    assert actions == [SetRoles("a", Role.ENCODE, "the stage has its own instance again")]


def test_who_comes_after_a_loss_of_all_does_every_stage():
    told = Told("E P D")
    for name in "abc":
        lose(told, name)
    assert kinds(told.send(InstanceJoined("c~1", Role.DECODE))) == [SetRoles, SetRoles]
    assert kinds(told.submit()) == [QueueAttempt]


def test_those_held_run_where_they_are_once_that_may_decode():
    told = moving("EP D")
    told.say("a", TellMoveFailed("r#1", "b", "full"))
    assert SetRoles("a", Role.parse("EPD"), "no other instance may do D") in lose(told, "b")
    assert told.send(InstanceJoined("c", Role.PREFILL)) == []
    assert told.say("a", tokens("r#1", 1, 8)) != [] and told.owner() == "a"


def test_roles_that_leave_a_stage_to_nobody_are_refused():
    told = Told("EP D")
    assert told.send(RolesAsked("b", Role.PREFILL)) == [RecordServingRefusal("b", "nobody else may do D")]
    assert kinds(told.send(RolesAsked("nobody", Role.PREFILL))) == [RecordServingRefusal]
    assert told.send(RolesAsked("a", Role.parse("EPD"))) == [SetRoles("a", Role.parse("EPD"), "asked for")]


def test_a_role_change_counts_when_a_batch_shows_it():
    told = Told("EPD EPD")
    told.scheduler.handle(5, RolesAsked("a", Role.PREFILL))
    told.scheduler.handle(6, InstanceSaid("a", TellRoles(Role.PREFILL, by_batch=False)))
    told.scheduler.handle(9, InstanceSaid("a", TellRoles(Role.PREFILL, by_batch=True)))
    server = told.scheduler.servers["a"]
    assert (server.switches, server.switch_ns) == (1, 4)


def test_one_too_many_is_turned_away():
    told = Told("EPD", queue_limit=2)
    told.submit()
    one, more = (RequestSubmitted(Request(name, (1,), Sampling(1))) for name in "st")
    told.scheduler.check([one])
    with pytest.raises(Overloaded, match="2 are allowed"):
        told.scheduler.check([one, more])
    told.submit("s")
    with pytest.raises(Overloaded):
        told.scheduler.check([more])
    told.scheduler.check([RequestAbandoned("r")])


# --- a first token that is told with the second


def keeping(layout="EP D D"):
    told = Told(layout, keep_first=True)
    told.submit()
    return told, told.say("a", tokens("r#1", 0, 7)), told.say("a", TellPrefilled("r#1"))


def answers(actions):
    return [(each.tokens.first, each.tokens.tokens) for each in actions if isinstance(each, Answer)]


def test_a_first_token_is_told_with_the_second_where_the_answer_goes_on_elsewhere():
    told, first, asked = keeping()
    assert answers(first) == [] and kinds(asked) == [MoveAttempt]
    assert answers(told.say("b", TellMoved("r#1", "a"))) == []
    assert answers(told.say("b", tokens("r#1", 1, 8))) == [(0, (7,)), (1, (8,))]
    assert answers(told.say("b", tokens("r#1", 2, 9))) == [(2, (9,))]


def test_it_is_told_at_once_where_it_decodes_or_has_ended_or_is_late():
    told = Told("EPD D", keep_first=True)
    told.submit()
    assert answers(told.say("a", tokens("r#1", 0, 7))) == [(0, (7,))]
    told = Told("EP D", keep_first=True)
    told.submit()
    assert answers(told.say("a", tokens("r#1", 0, 7, finish="stop"))) == [(0, (7,))]
    told = Told("EP D", keep_first=True, slo=Slo(ttft_ns=50_000_000, tpot_ns=30_000_000))
    told.submit()
    assert answers(told.say("a", tokens("r#1", 0, 7))) == [(0, (7,))], "two iterations would be too late"


def test_a_kept_token_is_told_when_no_decoder_takes_it_over_and_before_all_else():
    told, *_ = keeping("EP D")
    assert answers(told.say("a", TellMoveFailed("r#1", "b", "full"))) == [(0, (7,))]
    told, *_ = keeping()
    actions = lose(told, "a")
    assert answers(actions) == [(0, (7,))], "what was made is in the next attempt, so the client must know it"
    (queue,) = [each for each in actions if isinstance(each, QueueAttempt)]
    assert queue.request.made == (7,)


def test_a_kept_token_is_told_at_a_tick_when_its_promise_ends_and_never_to_one_who_left():
    told, *_ = keeping()
    assert answers(told.send(Tick())) == []
    assert answers(told.scheduler.handle(2_100_000_000, Tick())) == [(0, (7,))]
    told, *_ = keeping()
    assert answers(told.send(RequestAbandoned("r"))) == []
