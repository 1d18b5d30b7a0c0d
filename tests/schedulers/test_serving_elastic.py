"""Groups, roles, waiting and limits in the serving scheduler, by the actions it answers events with."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from msgspec.structs import replace

from tierline.core.errors import InvalidInput
from tierline.core.fleet_view import MoveRequest
from tierline.core.instance_actions import TellAsleep, TellAwake, TellEmbeddings, TellStatus, TellTokens
from tierline.core.request import ALL_ROLES, ImageSpan, Request, Role, Sampling
from tierline.core.routing_view import WAIT
from tierline.core.serving_actions import (
    MoveAttempt,
    QueueAttempt,
    RecordServingRefusal,
    SetGroup,
    SetRoles,
    SleepInstance,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from tierline.core.serving_events import (
    InstanceJoined,
    InstanceLost,
    InstanceSaid,
    RequestAbandoned,
    RequestSubmitted,
    RolesAsked,
    Tick,
)
from tierline.presets import PRESETS, preset_of
from tierline.schedulers.prefix_index import BLOCK, PrefixIndex, keys_of
from tierline.schedulers.serving import ServingScheduler
from tierline.schedulers.serving_elastic import Elasticity

SECOND = 10**9


@dataclass
class Proposes:
    """What it is told to, once."""

    proposals: list = field(default_factory=list)
    strict: bool = False
    views: list = field(default_factory=list)

    def propose(self, view):
        self.views.append(view)
        found, self.proposals = tuple(self.proposals), []
        return found


@dataclass
class OneAtATime:
    """An instance has room for one prompt."""

    late = True
    wants_affinity = False
    last_first: bool = False

    def choose(self, stage, instances, request, now_ns):
        free = [each.name for each in instances if not each.prompts]
        return free[0] if free else WAIT

    def order(self, request, now_ns):
        return (-request.submitted_ns if self.last_first else request.submitted_ns,)


class Told:
    def __init__(self, layout, routing=None, groups=None, **limits):
        self.policy = Proposes(strict=groups is not None)
        names = "abcdefgh"[: len(layout.split())]
        options = Elasticity(groups=self.policy, cool_down_ns=SECOND, **limits)
        where = dict(zip(names, groups.split(), strict=True)) if groups else {}
        self.scheduler = ServingScheduler(routing or OneAtATime(), elasticity=options, groups=where)
        self.now_ns = 0
        for name, letters in zip(names, layout.split(), strict=True):
            self.send(InstanceJoined(name, Role.parse(letters)))

    def send(self, event):
        return self.scheduler.handle(self.now_ns, event)

    def submit(self, name, prompt=(1,) * 10, images=0):
        spans = tuple(ImageSpan(f"x{at}", at, 1) for at in range(images))
        return self.send(
            RequestSubmitted(Request(name, prompt, Sampling(9), spans), tuple(f"x{at}" for at in range(images)))
        )

    def first_token(self, attempt, at="a"):
        return self.send(InstanceSaid(at, TellTokens(attempt, 0, (7,))))

    def look(self, *proposals, after_ns=0):
        self.now_ns += after_ns
        self.policy.proposals = list(proposals)
        return self.send(Tick())


# --- late binding


def test_a_request_without_room_waits_and_goes_to_whoever_has_room_first():
    told = Told("EPD EPD")
    assert [told.submit(name)[0].instance for name in "rs"] == ["a", "b"]
    assert told.submit("t") == [] and told.scheduler.waiting == 1
    queue = told.first_token("s#2", at="b")[-1]
    assert isinstance(queue, QueueAttempt) and (queue.instance, queue.request.request_id) == ("b", "t#3")
    assert told.scheduler.waiting == 0


def test_those_who_wait_go_in_the_order_of_the_policy():
    for last_first, wanted in ((False, "s"), (True, "t")):
        told = Told("EPD", OneAtATime(last_first))
        for name in "rst":
            told.now_ns += 1
            told.submit(name)
        queue = told.first_token("r#1")[-1]
        assert queue.request.request_id == f"{wanted}#2"


def test_who_waits_may_be_abandoned_and_a_loss_makes_no_room():
    told = Told("EPD EPD")
    for name in "rstu":
        told.now_ns += 1
        told.submit(name)
    assert told.send(RequestAbandoned("t")) == [] and told.scheduler.waiting == 1
    actions = told.send(InstanceLost("b", "killed"))
    assert not [each for each in actions if isinstance(each, QueueAttempt)] and told.scheduler.waiting == 2
    assert told.first_token("r#1")[-1].request.request_id == "s#3", "it came before u"


def test_a_crowd_of_one_modality_hides_nobody_of_the_other():
    class TextOnly(OneAtATime):
        def choose(self, stage, instances, request, now_ns):
            return WAIT if request.images else instances[0].name

    told = Told("EPD", TextOnly())
    told.submit("r")
    for at in range(5):
        assert told.submit(f"i{at}", images=1) == []
    assert isinstance(told.submit("s")[0], QueueAttempt)


def test_where_all_are_idle_nobody_waits_whatever_the_policy_says():
    class Never(OneAtATime):
        def choose(self, stage, instances, request, now_ns):
            return WAIT

    told = Told("EPD EPD", Never())
    assert isinstance(told.submit("r")[0], QueueAttempt)
    assert told.submit("s") == []
    (queue,) = [
        each
        for each in told.send(InstanceSaid("a", TellTokens("r#1", 0, (7,), "stop")))
        if isinstance(each, QueueAttempt)
    ]
    assert queue.request.request_id == "s#2"


def test_policies_see_a_request_without_what_the_client_said_of_its_length():
    seen = []

    class Sees(OneAtATime):
        def choose(self, stage, instances, request, now_ns):
            seen.append(request)
            return super().choose(stage, instances, request, now_ns)

    told = Told("EPD EPD", Sees())
    told.submit("r")
    told.send(RequestSubmitted(Request("s", (1,) * 10, Sampling(123456, min_tokens=777))))
    assert type(seen[0]) is type(seen[1]) and replace(seen[1], request_id="r") == seen[0]


# --- roles, groups, limits


def test_proposals_are_done_with_their_reason_and_shown():
    told = Told("EPD EPD")
    change = SetRoles("b", Role.PREFILL, "numbers")
    assert told.look(change) == [change]
    (decision,) = told.scheduler.decisions
    assert (decision.subject, decision.what, decision.reason) == ("b", "roles P", "numbers")
    assert told.scheduler.servers["b"].reason == "numbers" and told.scheduler.counts["role_changes"] == 1


def test_an_instance_that_changed_rests_and_to_change_back_rests_twice_as_long():
    told = Told("EPD EPD")
    there, back = SetRoles("b", Role.PREFILL, "there"), SetRoles("b", ALL_ROLES, "back")
    assert told.look(there, after_ns=SECOND) == [there]
    (refusal,) = told.look(back, after_ns=SECOND - 1)
    assert "less than 1 s ago" in refusal.reason
    assert told.look(back, after_ns=0) == [], "told once"
    (refusal,) = told.look(back, after_ns=1)
    assert "less than 2 s ago" in refusal.reason
    assert told.look(SetRoles("b", Role.parse("PD"), "on"), after_ns=1) != []
    assert told.look(back, after_ns=2 * SECOND) == [back]


def test_roles_rest_for_a_change_of_a_group_that_binds_and_not_for_a_preference():
    regroup, roles = SetGroup("b", "text", "share"), SetRoles("b", Role.parse("EP"), "numbers")
    told = Told("EPD EPD EPD")
    assert told.look(regroup) == [regroup]
    assert told.look(roles, after_ns=1) == [roles]
    (refusal,) = told.look(SetGroup("b", "shared", "back"), after_ns=1)
    assert "less than 1 s ago" in refusal.reason
    told = Told("EPD EPD EPD", groups="shared shared shared")
    assert told.look(regroup) == [regroup]
    (refusal,) = told.look(roles, after_ns=1)
    assert "less than 1 s ago" in refusal.reason


def test_what_people_ask_for_need_not_rest():
    told = Told("EPD EPD")
    told.look(SetRoles("b", Role.PREFILL, "there"))
    assert told.send(RolesAsked("b", ALL_ROLES)) == [SetRoles("b", ALL_ROLES, "asked for")]
    assert isinstance(told.look(SetRoles("b", Role.PREFILL, "again"))[0], RecordServingRefusal)


@pytest.mark.parametrize(
    ("proposal", "why"),
    [
        (SetRoles("b", Role.PREFILL, ""), "nobody else may do D"),
        (SetRoles("x", Role.PREFILL, ""), "no such instance"),
        (SetRoles("a", Role(0), ""), "do nothing"),
        (StopInstance("b", ""), "nobody else may do D"),
        (StartInstance("shared", ""), "2 allowed"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(proposal, why):
    told = Told("EP D", max_instances=2)
    (refusal,) = told.look(proposal)
    assert isinstance(refusal, RecordServingRefusal) and why in refusal.reason
    assert told.look(proposal) == [], "and recorded once"


def test_a_strict_group_keeps_its_stages():
    told = Told("P D E P D", groups="text text multimodal multimodal multimodal")
    for proposal, why in (
        (SetRoles("a", Role.DECODE, ""), "the text group would have nobody for P"),
        (SetGroup("c", "text", ""), "the multimodal group would have nobody for E"),
        (SetGroup("b", "multimodal", ""), "the text group would have nobody for D"),
    ):
        (refusal,) = told.look(proposal)
        assert why in refusal.reason
    both = SetRoles("d", Role.parse("PD"), "x"), SetGroup("e", "text", "x")
    assert told.look(*both) == list(both)
    (refusal,) = told.send(RolesAsked("a", Role.ENCODE))
    assert "text group" in refusal.reason, "nor may people take it"


def test_a_lost_stage_of_a_group_is_taken_over_within_it():
    told = Told("P D E P D", groups="text text multimodal multimodal multimodal")
    actions = told.send(InstanceLost("b", "killed"))
    (change,) = [each for each in actions if isinstance(each, SetRoles)]
    assert (change.instance, change.roles) == ("a", Role.parse("PD")) and "text group" in change.reason
    back = told.send(InstanceJoined("b~1", Role.DECODE))
    assert told.scheduler.servers["b~1"].group == "text", "who comes in its place serves whom it served"
    assert [(each.instance, each.roles) for each in back if isinstance(each, SetRoles)] == [("a", Role.PREFILL)]


def test_a_policy_sees_what_the_one_before_has_done_and_moves_go_the_usual_way():
    first, second = Proposes([SetRoles("b", Role.DECODE, "x")]), Proposes()
    scheduler = ServingScheduler(OneAtATime(), elasticity=Elasticity(groups=first, stages=second))
    for name in "ab":
        scheduler.handle(0, InstanceJoined(name, ALL_ROLES))
    scheduler.handle(0, RequestSubmitted(Request("r", (1,) * 10, Sampling(9))))
    scheduler.handle(0, InstanceSaid("a", TellTokens("r#1", 0, (7,))))
    scheduler.handle(1, Tick())
    assert [each.roles for each in second.views[0].members] == [ALL_ROLES, Role.DECODE]
    second.proposals = [MoveRequest("r", "b", "lighter there")]
    assert scheduler.handle(2, Tick()) == [MoveAttempt("a", "r#1", "b", "lighter there")]


def test_pressure_is_looked_at_between_ticks_but_not_all_the_time():
    told = Told("EPD", react_ns=10)
    told.now_ns = 100
    told.submit("r")
    assert told.policy.views == []
    told.submit("s")
    assert len(told.policy.views) == 1 and told.policy.views[0].text.waiting == 1
    told.now_ns += 5
    told.submit("t")
    assert len(told.policy.views) == 1
    told.now_ns += 5
    told.submit("u")
    assert len(told.policy.views) == 2 and told.policy.views[1].text.queue[0].request_id == "s"


# --- start and stop


def test_an_instance_ends_when_it_has_nothing_to_do_any_more():
    told = Told("EPD EPD", max_instances=3)
    told.submit("r")
    told.submit("s")
    told.first_token("s#2", at="b")
    stop = StopInstance("b", "too many")
    assert told.look(stop) == [SetRoles("b", Role(0), "too many")]
    assert told.submit("t") == [] and told.look() == [], "it takes nothing and its decode has to go"
    actions = told.send(InstanceSaid("b", TellTokens("s#2", 1, (8,), "stop")))
    assert StopInstance("b", "too many") not in actions
    assert told.look() == [stop] and told.look() == []


def test_the_last_ones_stay_and_the_last_one_of_all_may_go_only_idle():
    told = Told("EPD", min_instances=0, max_instances=2)
    told.submit("r")
    (refusal,) = told.look(StopInstance("a", "x"))
    assert "there is work" in refusal.reason
    told.send(RequestAbandoned("r"))
    assert told.look(StopInstance("a", "x")) == [SetRoles("a", Role(0), "x"), StopInstance("a", "x")]
    told.send(InstanceLost("a", "told to end"))
    assert told.submit("s") == []
    start = StartInstance("text", "s waits")
    assert told.look(start) == [start] and told.policy.views[-1].starting == 0
    told.look()
    assert told.policy.views[-1].starting == 1
    (queue,) = told.send(InstanceJoined("b", ALL_ROLES))
    assert queue.request.request_id == "s#2" and told.scheduler.servers["b"].group == "text"


def test_an_instance_that_does_not_come_is_not_waited_for_for_ever():
    told = Told("EPD", max_instances=2, start_timeout_ns=SECOND)
    told.look(StartInstance("shared", "x"))
    assert isinstance(told.look(StartInstance("shared", "x"), after_ns=SECOND - 1)[0], RecordServingRefusal)
    assert told.look(StartInstance("shared", "x"), after_ns=1) == [StartInstance("shared", "x")]


# --- sleep and wake

SLEEP, WAKE = SleepInstance("b", "too many"), WakeInstance("b", "shared", "s waits")


def says(told, tell, at="b"):
    return told.send(InstanceSaid(at, tell))


def asleep(layout="EPD EPD", **options):
    """`b` sleeps."""
    told = Told(layout, **{"max_instances": 2, **options})
    told.look(SLEEP)
    says(told, TellAsleep())
    assert told.scheduler.servers["b"].state == "asleep"
    return told


def test_an_instance_sleeps_when_it_has_nothing_to_do_any_more():
    told = Told("EPD EPD", max_instances=3)
    told.submit("r")
    told.submit("s")
    told.first_token("s#2", at="b")
    assert told.look(SLEEP) == [SetRoles("b", Role(0), "too many")]
    assert told.submit("t") == [] and told.look() == [], "it takes nothing and its decode has to go"
    assert SLEEP not in says(told, TellTokens("s#2", 1, (8,), "stop"))
    assert told.look() == [SLEEP] and told.look() == []
    assert told.scheduler.counts["instance_sleeps"] == 0, "it has not said so"
    says(told, TellAsleep())
    assert told.scheduler.counts["instance_sleeps"] == 1
    (view,) = told.policy.views[-1:]
    assert [each.name for each in view.members] == ["a"] and [each.name for each in view.sleeping] == ["b"]


def test_a_sleeping_instance_is_neither_server_nor_start_and_may_not_be_asked_for_anything():
    told = asleep("EPD EPD EPD", max_instances=3)
    assert "it sleeps" in told.look(SetRoles("b", Role.PREFILL, ""))[0].reason
    assert "it sleeps" in told.look(SetGroup("b", "text", ""))[0].reason
    assert "it sleeps" in told.send(RolesAsked("b", ALL_ROLES))[0].reason
    assert told.policy.views[-1].starting == 0
    told.look(WAKE)
    assert "being woken" in told.look(SLEEP)[0].reason and told.policy.views[-1].starting == 1


def test_one_that_sleeps_is_woken_before_another_is_started_and_nobody_beyond_the_most():
    told = asleep(max_instances=3)
    (refusal,) = told.look(StartInstance("shared", "x"))
    assert "b sleeps and is to be woken first" in refusal.reason
    assert told.look(WAKE) == [WAKE] and told.look(WAKE) == []
    assert told.look(StartInstance("shared", "x")) == [StartInstance("shared", "x")]
    assert "3 allowed" in told.look(StartInstance("shared", "y"))[0].reason
    full = asleep(max_instances=2)
    full.send(InstanceJoined("c", ALL_ROLES))
    assert "2 instances are there, 2 allowed" in full.look(WAKE)[0].reason


def test_it_serves_when_its_first_batch_has_run_and_not_before():
    told = asleep()
    told.submit("r")
    assert told.submit("s") == []
    told.now_ns += 5
    assert told.look(WAKE) == [WAKE] and told.submit("t") == []
    told.now_ns += 7
    (queue,) = says(told, TellAwake(ALL_ROLES))
    assert (queue.instance, queue.request.request_id) == ("b", "s#2")
    server = told.scheduler.servers["b"]
    assert (server.state, server.wake_ns, told.scheduler.counts["instance_wakes"]) == ("awake", 7, 1)
    assert "a moment ago" in told.look(SLEEP)[0].reason, "it rests before it sleeps again"


def test_it_wakes_with_the_roles_it_had_and_stands_in_for_who_is_gone():
    told = Told("EP EPD PD", max_instances=3, min_instances=0)
    told.look(SleepInstance("a", "x"))
    says(told, TellAsleep(), at="a")
    for name in "bc":
        told.send(InstanceLost(name, "killed"))
    assert told.submit("r") == []
    (wake,) = told.look(WakeInstance("a", "shared", "r waits"))
    assert wake.roles == Role.parse("EP")
    actions = says(told, TellAwake(wake.roles), at="a")
    assert [each.roles for each in actions if isinstance(each, SetRoles)] == [ALL_ROLES]
    assert [each.instance for each in actions if isinstance(each, QueueAttempt)] == ["a"]


def test_called_back_before_it_was_told_it_goes_on_at_once():
    told = Told("EPD EPD", max_instances=2)
    told.submit("r")
    told.submit("s")
    told.look(SLEEP)
    assert told.look(WAKE) == [SetRoles("b", ALL_ROLES, "called back: s waits")]
    assert told.scheduler.servers["b"].state == "awake" and told.look(after_ns=SECOND) == []


def test_woken_before_it_has_said_that_it_sleeps():
    told = Told("EPD EPD", max_instances=2)
    told.look(SLEEP)
    assert told.look(WAKE) == [WAKE]
    says(told, TellAsleep())
    assert told.scheduler.servers["b"].state == "waking"
    says(told, TellAwake(ALL_ROLES))
    assert told.scheduler.servers["b"].state == "awake"


@pytest.mark.parametrize(
    ("layout", "options", "why"),
    [
        ("EPD EPD", {"min_instances": 2}, "2 instances are there, and that many are needed"),
        ("EP EPD", {}, "nobody else may do D"),
        ("PD PD EPD", {"groups": "text multimodal multimodal"}, "the multimodal group would have nobody for E"),
        ("EPD EPD", {"max_instances": 0}, "that many are needed"),
    ],
)
def test_sleep_is_barred_where_an_end_is(layout, options, why):
    names = {"EPD EPD": "b", "EP EPD": "b", "PD PD EPD": "c"}
    told = Told(layout, **{"max_instances": 3, **options})
    for proposal in (SleepInstance(names[layout], ""), StopInstance(names[layout], "")):
        (refusal,) = told.look(proposal)
        assert why in refusal.reason or "nobody else may do E" in refusal.reason


def test_the_last_one_may_sleep_only_idle_and_is_woken_for_who_comes():
    told = Told("EPD", min_instances=0, max_instances=2)
    told.submit("r")
    assert "there is work" in told.look(SleepInstance("a", "x"))[0].reason
    told.send(RequestAbandoned("r"))
    assert told.look(SleepInstance("a", "x")) == [SetRoles("a", Role(0), "x"), SleepInstance("a", "x")]
    says(told, TellAsleep(), at="a")
    told.now_ns += SECOND
    told.policy.proposals = [WakeInstance("a", "shared", "s waits")]
    actions = told.submit("s")
    assert isinstance(actions[-1], WakeInstance), "at once, not at the next tick"
    assert told.policy.views[-1].text.waiting == 1
    assert [type(each) for each in says(told, TellAwake(ALL_ROLES), at="a")] == [QueueAttempt]


def test_a_sleeping_one_is_ended_at_once_and_its_death_is_nobodys_loss():
    told = asleep()
    stop = StopInstance("b", "long asleep")
    assert told.look(stop) == [stop] and told.look(stop) == []
    assert told.policy.views[-1].sleeping == ()
    told.send(InstanceLost("b", "told to end"))
    assert list(told.scheduler.servers) == ["a"]
    dead = asleep()
    dead.submit("r")
    assert not [each for each in dead.send(InstanceLost("b", "killed")) if isinstance(each, QueueAttempt | SetRoles)]
    assert dead.look() == [] and dead.policy.views[-1].sleeping == ()
    assert dead.look(StartInstance("shared", "x")) == [StartInstance("shared", "x")]


def test_a_sleeping_one_takes_no_stage_over_and_one_on_its_way_goes_on_for_it():
    told = asleep("EPD EPD")
    assert not [each for each in told.send(InstanceLost("a", "killed")) if isinstance(each, SetRoles)]
    assert told.scheduler.servers["b"].roles == Role(0)
    drowsy = Told("EPD EPD", max_instances=2)
    for name in "rs":
        drowsy.submit(name)
    drowsy.look(SLEEP)
    actions = drowsy.send(InstanceLost("a", "killed"))
    assert [each.roles for each in actions if isinstance(each, SetRoles)][-1] == ALL_ROLES
    assert drowsy.scheduler.servers["b"].state == "awake"


def test_one_that_does_not_wake_is_not_waited_for_for_ever():
    told = asleep(start_timeout_ns=SECOND)
    told.look(WAKE)
    told.look(after_ns=SECOND - 1)
    assert told.policy.views[-1].starting == 1
    told.look(after_ns=1)
    assert told.policy.views[-1].starting == 0


def test_what_a_sleeper_had_cached_is_not_counted_on():
    told = Told("EPD EPD", Affine(), max_instances=2)
    prompt = tuple(range(2 * BLOCK))
    told.submit("r", prompt, images=1)
    assert told.scheduler.servers["b"].prompts
    says(told, TellEmbeddings(("x0",), ()))
    says(told, TellTokens("r#1", 0, (7,), "stop"))
    assert told.scheduler.has_embeddings("x0")
    told.look(SLEEP)
    assert not told.scheduler.has_embeddings("x0")
    says(told, TellEmbeddings(("late",), ()))
    assert not told.scheduler.has_embeddings("late"), "it will give that up too"
    says(told, TellAsleep())
    told.look(WAKE)
    says(told, TellAwake(ALL_ROLES))
    told.submit("s", prompt)
    assert [dict(each.cached) for each in Affine.seen] == [{}, {}], "nothing of the first request is there"


@dataclass
class Affine(OneAtATime):
    """To `b`, by what it knows of caches."""

    wants_affinity = True
    seen: ClassVar[list] = []

    def choose(self, stage, instances, request, now_ns):
        if stage is Role.PREFILL:
            self.seen.append(request)
        return instances[-1].name


def test_limits_that_cannot_be():
    for options in ({"period_ns": 0}, {"cool_down_ns": -1}, {"min_instances": 3, "max_instances": 2}):
        with pytest.raises(InvalidInput):
            Elasticity(**options)


# --- prefix index


def test_the_beginning_of_a_prompt_is_found_where_it_went():
    index = PrefixIndex()
    long, other = tuple(range(4 * BLOCK)), (*range(2 * BLOCK), *[9] * BLOCK)
    index.sent(keys_of(Request("r", long, Sampling(1))), "a")
    index.sent(keys_of(Request("s", other, Sampling(1))), "b")
    keys = keys_of(Request("t", (*long, 5), Sampling(1)))
    assert index.cached(keys, {"a", "b"}) == {"a": 4 * BLOCK, "b": 2 * BLOCK}
    assert index.cached(keys, {"b"}) == {"b": 2 * BLOCK}, "the dead have nothing"
    assert index.cached(keys[:0], {"a"}) == {} and index.cached((1, 2), {"a"}) == {}


def test_the_same_placeholders_of_another_picture_are_another_prompt():
    def keys(picture):
        return keys_of(Request("r", (7,) * (2 * BLOCK), Sampling(1), (ImageSpan(picture, 10, 4),)))

    assert keys("x") == keys("x") and not set(keys("x")) & set(keys("y"))


def test_the_index_is_bounded_and_keeps_what_was_used_last():
    index = PrefixIndex(blocks=3)
    for key in range(5):
        index.sent((key,), "a")
        index.sent((0,), "a")
    assert len(index) == 3 and index.cached((0,), {"a"}) and not index.cached((1,), {"a"})
    for name in "bcdef":
        index.sent((0,), name)
    assert set(index.cached((0,), set("abcdef"))) == set("cdef")


# --- presets


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_true_output_lengths_change_no_decision(name):
    """The same run with other limits of length and other least lengths: the same actions."""
    runs = [preset_run(name, poison) for poison in (1, 7)]
    assert runs[0] == runs[1] and len(runs[0]) > 100


def preset_run(name, poison):
    slots = {f"i{at}": slot for at, slot in enumerate(preset_of(name).layout(5))}
    scheduler, told = preset_of(name).make_scheduler(slots), []

    def send(now_ns, event):
        actions = scheduler.handle(now_ns, event)
        told.extend(str(each).replace(f"max_tokens={50 * poison}, min_tokens={poison}", "") for each in actions)
        for each in actions:
            if isinstance(each, QueueAttempt):
                at[each.request.request_id] = each.instance

    at = {}
    for slot, begins in slots.items():
        send(0, InstanceJoined(slot, begins.roles))
    for number in range(60):
        now_ns = number * SECOND // 20
        images = (ImageSpan(f"x{number % 9}", 0, 200),) if number % 3 == 0 else ()
        sampling = Sampling(50 * poison, min_tokens=poison)
        request = Request(f"r{number}", (1,) * (300 + number), sampling, images)
        send(now_ns, RequestSubmitted(request, tuple(each.content_hash for each in images)))
        for attempt in list(at):
            live = scheduler.live_request(attempt.partition("#")[0])
            if live is not None and not live.told:
                send(now_ns, InstanceSaid(at[attempt], TellTokens(attempt, 0, (5,))))
            elif number % 7 == 0:
                send(now_ns, InstanceSaid(at.pop(attempt), TellTokens(attempt, 1, (5,), "stop")))
        if number % 5 == 0:
            send(now_ns, InstanceSaid("i0", TellStatus(1, 0, 0, 0, 50, 100, 0, 0, 0, 0, 0, 1)))
            send(now_ns, Tick())
    return told


def test_presets_have_layouts_for_any_number_and_their_parts_can_be_left_out():
    for name, preset in PRESETS.items():
        for count in range(1, 65):
            slots = preset.layout(count)
            assert len(slots) == count
            together = Role(0)
            for slot in slots:
                together |= slot.roles
            assert together == ALL_ROLES, (name, count)
        for part in ("groups", "elasticity", "cache", "overlap", "deadlines"):
            assert preset_of(f"{name}-{part}").name == f"{name}-{part}"
    assert [slot.group for slot in preset_of("emp").layout(8)] == ["text"] * 2 + ["multimodal"] * 6
    assert preset_of("emp-elasticity").stages is None and not preset_of("adaptive-cache").prefix_caching
    assert preset_of("adaptive-deadlines").batching.options["by_deadline"] is False
    with pytest.raises(InvalidInput, match="did you mean 'adaptive'"):
        preset_of("adaptiv")


def test_a_static_preset_takes_any_layout():
    assert [slot.roles.letters for slot in preset_of("static:2E2P4D").layout(0)] == [*"EEPPDDDD"]
    split = preset_of("static:1P1D+2E2P2D")
    assert [slot.group for slot in split.layout(8)] == ["text"] * 2 + ["multimodal"] * 6
    assert split.elasticity.strict and split.elasticity.stages is None
    for text, why in (
        ("2E2P", "no instance may do D"),
        ("P+EPD", "text group may do D"),
        ("E+P+D", "two groups"),
        ("x", "E, P and D"),
    ):
        with pytest.raises(InvalidInput, match=why):
            preset_of(f"static:{text}")
    with pytest.raises(InvalidInput, match="do not agree"):
        preset_of("static:2E2P4D").layout(6)
