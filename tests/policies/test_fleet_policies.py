"""Group, stage and scale policies: what each of a family's registry keeps, and what each does, by its proposals."""

import random
from dataclasses import fields, replace

import pytest

from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.fleet_view import (
    DecodeView,
    Demand,
    FleetView,
    MemberView,
    MoveRequest,
    PromptView,
    SleeperView,
    stages_of,
)
from tierline.core.request import ALL_ROLES, Role
from tierline.core.serving_actions import (
    SetGroup,
    SetRoles,
    SleepInstance,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from tierline.core.slo import Slo
from tierline.perf.serving_demand import StageRates
from tierline.policies import groups, scale, stages
from tierline.policies.groups import make_groups
from tierline.policies.scale import make_scale
from tierline.policies.stages import make_stages
from tierline.policies.stages.enough_decoders import EnoughDecoders, steady_tpot_s
from tierline.policies.stages.gain_cost import moving_cost, prompts_gain, slowdown
from tierline.policies.stages.paper import equation_2_cost, equation_2_gain, equation_3_cost, equation_3_gain

FAMILIES = {
    **{("groups", name): (groups.POLICIES, make_groups) for name in groups.POLICIES},
    **{("stages", name): (stages.POLICIES, make_stages) for name in stages.POLICIES},
    **{("scale", name): (scale.POLICIES, make_scale) for name in scale.POLICIES},
}
RATES = StageRates(
    prefill_token_s=1e-4, decode_base_s=10e-3, decode_sequence_s=1e-4, decode_context_s=0.0,
    transfer_base_s=1e-3, transfer_byte_s=0.0,
)  # fmt: skip


def prompt(name="p", tokens=1000, modality="text", waited_s=0.0):
    return PromptView(name, modality, tokens, tokens * RATES.prefill_token_s, waited_s)


def decode(name="d", context=500, made=20, remaining=100.0):
    return DecodeView(name, context, made, remaining)


def member(name, roles="EPD", group="shared", prompts=0, decodes=0, encode_s=0.0, free=90, held=0, cooling=False):
    queue = tuple(prompt(f"{name}p{at}") for at in range(min(prompts, 4)))
    some = tuple(decode(f"{name}d{at}") for at in range(min(decodes, 4)))
    return MemberView(
        name, group, Role.parse(roles), cooling, prompts, 1000 * prompts, 0.1 * prompts, int(encode_s > 0), encode_s,
        decodes, held, 500 * decodes, RATES.decode_s(decodes, 500 * decodes), free, 100, queue, some,
    )  # fmt: skip


def fleet(*members, text=None, multimodal=None, **options):
    return FleetView(
        10**10, members, text or Demand("text"), multimodal or Demand("multimodal"), Slo(tpot_ns=50_000_000), **options
    )


def any_fleet(rng):
    members = tuple(
        member(
            f"i{at}", rng.choice(["EPD", "EP", "PD", "E", "P", "D"]), rng.choice(["text", "multimodal", "shared"]),
            rng.choice([0, 0, 3, 40]), rng.choice([0, 0, 5, 300]), rng.choice([0.0, 0.5]), rng.randrange(101),
            rng.choice([0, 0, 60]), rng.random() < 0.2,
        )
        for at in range(rng.randrange(9))
    )  # fmt: skip
    sleeping = tuple(SleeperView(f"s{at}", "shared", rng.randrange(10**10)) for at in range(rng.choice([0, 0, 1, 3])))

    def demand(modality):
        waiting = rng.choice([0, 0, 5, 50])
        queue = tuple(prompt(f"{modality}{at}", rng.randrange(1, 4000), modality) for at in range(min(waiting, 8)))
        load = [rng.choice([0.0, rng.random() * 3]) for _ in range(3)]
        return Demand(modality, rng.random() * 9, *load, waiting, 0.2 * waiting, queue)

    return fleet(
        *members, text=demand("text"), multimodal=demand("multimodal"), max_instances=rng.choice([0, 6, 12]),
        starting=rng.choice([0, 0, 1]), sleeping=sleeping, mean_tpot_s=rng.choice([0.0, 0.02, 0.2]),
    )  # fmt: skip


@pytest.mark.parametrize("family", sorted(FAMILIES), ids="-".join)
class TestRegistered:
    def test_it_is_where_the_registry_says_and_explains_itself(self, family):
        policies, make = FAMILIES[family]
        policy = type(make(family[1]))
        assert policy.__module__.endswith(f".{family[1]}") and family[1] in policies
        assert all(word in policy.__doc__ for word in ("Idea:", "Source:", "Inputs:", "Memory:", "Cost:"))

    def test_any_fleet_gets_proposals_for_its_own_members_with_reasons(self, family):
        _, make = FAMILIES[family]
        proposed = []
        for _ in range(2):
            policy, rng = make(family[1]), random.Random(7)
            proposed.append([])
            for _ in range(300):
                view = any_fleet(rng)
                found = policy.propose(view)
                proposed[-1].append(found)
                cooling = {each.name: each.cooling for each in view.members}
                regrouping = {each.name: each.group_cooling for each in view.members}
                for each in found:
                    assert each.reason
                    if isinstance(each, SetRoles):
                        assert each.roles and not cooling[each.instance]
                    elif isinstance(each, WakeInstance) or (
                        isinstance(each, StopInstance) and each.instance not in cooling
                    ):
                        assert each.instance in {sleeper.name for sleeper in view.sleeping}
                    elif isinstance(each, SetGroup | StopInstance | SleepInstance):
                        assert not (regrouping if isinstance(each, SetGroup) else cooling)[each.instance]
                    elif isinstance(each, MoveRequest):
                        assert each.to in cooling
        assert proposed[0] == proposed[1], "the same views, the same proposals"
        assert any(proposed[0]) is (family[1] not in ("static", "fixed"))

    def test_unknown_names_and_options_are_refused(self, family):
        _, make = FAMILIES[family]
        with pytest.raises(UnknownName):
            make(family[1] + "x")
        with pytest.raises(InvalidInput):
            make(family[1], {"no such option": 1})


def test_views_hold_no_true_output_length():
    names = {each.name for view in (FleetView, MemberView, PromptView, DecodeView, Demand) for each in fields(view)}
    assert not names & {"sampling", "max_tokens", "min_tokens", "request", "ignore_eos"}


# --- gain and cost


def test_gain_is_what_prompts_save_per_token():
    two = [(prompt("a"), 1.0), (prompt("b"), 1.0)]
    assert prompts_gain(two, [1.0], [1.0, 1.0]) == pytest.approx((0.2 - 0.1) / 1000)
    assert prompts_gain(two, [1.0, 1.0], [1.0, 1.0, 1.0]) == 0
    assert prompts_gain(two, [], [1.0]) == float("inf")


def test_a_move_is_paid_once_by_those_who_move():
    assert moving_cost([(decode(remaining=50.0), 4.0)], RATES) == pytest.approx(4 * 1e-3 / 50)


def test_the_slowdown_is_the_growth_of_tpot_over_the_horizon_per_token_to_come():
    many = [(decode(remaining=100.0), 100.0)]
    before, after = RATES.decode_s(50, 0), RATES.decode_s(100, 0)
    assert slowdown(many, 2, 1, 2.0, RATES) == pytest.approx(100 * 2.0 * (after / before - 1) / 100)
    assert slowdown(many, 1, 2, 2.0, RATES) < 0 == slowdown([], 2, 1, 2.0, RATES)


def test_equations_2_and_3_as_printed():
    prompts, decodes = [(prompt("a"), 1.0), (prompt("b"), 1.0)], [(decode(made=20, remaining=80.0), 10.0)]
    assert equation_2_gain(prompts, 1) == pytest.approx(2 * (0.2 - 0.1) / 1000)
    one = member("x", "D", decodes=5)
    longer = RATES.decode_s(10, 0) - RATES.decode_s(5, 0)
    assert equation_2_cost(decodes, one, 2, 1.0, RATES) == pytest.approx(10 * (1e-3 + longer) / 100)
    assert equation_3_gain(decodes, 1, 0.03, RATES) == pytest.approx(10 * (0.03 - RATES.decode_s(5, 0)) / 100)
    assert equation_3_cost(prompts, one, 2, 1.0, RATES) == pytest.approx(2 * (1e-3 + 0.1) / 1000)
    assert equation_3_cost([], one, 2, 1.0, RATES) == 0


SPLIT = {"rates": RATES, "prompt_roles": "P", "decode_roles": "D", "encode_apart": True}


@pytest.mark.parametrize("name", ["gain_cost", "paper"])
def test_prefill_takes_the_decode_instance_that_costs_least_when_prompts_pile_up(name):
    policy = make_stages(name, SPLIT if name == "gain_cost" else {"rates": RATES})
    calm = fleet(
        member("e", "E"), member("p", "P", prompts=1), member("c", "D", decodes=200), member("d", "D", decodes=9)
    )
    assert policy.propose(calm) == ()
    piled = fleet(
        member("e", "E"), member("p", "P", prompts=40), member("c", "D", decodes=9), member("d", "D", free=99)
    )
    (change,) = policy.propose(piled)
    assert (change.instance, change.roles) == ("d", Role.PREFILL)


@pytest.mark.parametrize("name", ["gain_cost", "paper"])
def test_decode_takes_an_idle_prefill_instance_when_its_tpot_is_short(name):
    policy = make_stages(name, SPLIT if name == "gain_cost" else {"rates": RATES})
    members = [member("e", "E"), member("p", "P"), member("q", "P", prompts=2)]
    assert policy.propose(fleet(*members, member("d", "D", decodes=100), mean_tpot_s=0.02)) == ()
    (change,) = policy.propose(fleet(*members, member("d", "D", decodes=390), mean_tpot_s=0.05))
    assert (change.instance, change.roles) == ("p", Role.DECODE)
    (change,) = policy.propose(fleet(*members, member("d", "D", decodes=100, free=5), mean_tpot_s=0.02))
    assert (change.instance, change.roles) == ("p", Role.DECODE), "KV is short"


def test_the_last_prefill_and_the_last_decode_instance_stay():
    for name in ("gain_cost", "paper", "thresholds"):
        policy = make_stages(name)
        assert policy.propose(fleet(member("e", "E"), member("p", "P", prompts=400), member("d", "D", decodes=2))) == ()
        assert policy.propose(fleet(member("e", "E"), member("p", "P"), member("d", "D", decodes=900, free=0))) == ()


def test_encoders_and_prefill_instances_are_split_by_what_waits():
    policy = make_stages("gain_cost", SPLIT)
    busy = fleet(member("e", "E", encode_s=4.0), member("p", "P"), member("q", "P"), member("d", "D"))
    (change,) = policy.propose(busy)
    assert (change.instance, change.roles) == ("p", Role.ENCODE)
    idle = fleet(member("e", "E"), member("f", "E"), member("p", "P", prompts=30), member("d", "D"))
    (change,) = policy.propose(idle)
    assert (change.instance, change.roles) == ("e", Role.PREFILL)


def test_a_group_without_anybody_to_give_takes_the_other_groups_least_hurt_instance():
    policy = make_stages("gain_cost", SPLIT)
    queue = tuple(prompt(f"w{at}") for at in range(8))
    view = fleet(
        member("a", "PD", "text", prompts=20), member("e", "E", "multimodal"), member("p", "P", "multimodal", prompts=9),
        member("q", "P", "multimodal"), member("d", "D", "multimodal", decodes=5),
        text=Demand("text", waiting=40, waiting_s=4.0, queue=queue),
    )  # fmt: skip
    group, roles = policy.propose(view)
    assert isinstance(group, SetGroup) and group.group == "text" and group.instance == roles.instance
    assert roles.instance in ("p", "q") and roles.roles == Role.PREFILL
    assert policy.propose(replace(view, text=Demand("text"), members=tuple(view.members[1:]))) == ()


def test_thresholds_are_the_releases():
    policy = make_stages("thresholds")
    decoders = (member("c", "D"), member("d", "D"))
    assert policy.propose(fleet(member("p", "P", prompts=30), *decoders)) == ()
    (change,) = policy.propose(fleet(member("p", "P", prompts=31), *decoders))
    assert (change.instance, change.roles) == ("d", Role.PREFILL), "the last one"
    (change,) = policy.propose(fleet(member("p", "P"), member("q", "P", held=51), member("d", "D")))
    assert (change.instance, change.roles) == ("q", Role.DECODE)
    (change,) = policy.propose(fleet(member("p", "P"), member("q", "P"), member("d", "D", free=9)))
    assert (change.instance, change.roles) == ("q", Role.DECODE), "passive scaling"


def test_coupled_gives_everybody_every_stage():
    changes = make_stages("coupled").propose(fleet(member("a"), member("b", "P"), member("c", "D", cooling=True)))
    assert [(each.instance, each.roles) for each in changes] == [("b", ALL_ROLES)]


# --- groups


def split(texts, others, **demands):
    rest = ["E", "P", "D"] + ["PD"] * (others - 3)
    members = [member(f"t{at}", "PD", "text") for at in range(texts)]
    members += [member(f"m{at}", roles, "multimodal") for at, roles in enumerate(rest)]
    return fleet(*members, **{key: Demand(key, decode=value) for key, value in demands.items()})


def test_an_instance_goes_to_the_group_of_lowest_burst_tolerance():
    policy = make_groups("burst_tolerance")
    assert policy.propose(split(2, 6, text=0.5, multimodal=1.5)) == ()
    assert policy.propose(split(2, 6, text=0.0, multimodal=0.0)) == ()
    found = policy.propose(split(2, 6, text=3.0, multimodal=1.0))
    assert isinstance(found[0], SetGroup) and found[0].group == "text"
    assert found[0].instance != "m0", "nobody else of its group would encode"
    found = policy.propose(split(4, 4, text=0.2, multimodal=3.0))
    assert found[0].group == "multimodal" and found[0].instance.startswith("t")
    assert policy.propose(split(4, 4, text=1.0, multimodal=1.2)) == (), "within the margin"


def test_who_waits_counts_as_demand():
    policy = make_groups("burst_tolerance")
    view = split(2, 6, text=0.5, multimodal=1.5)
    waits = replace(view, text=replace(view.text, waiting=50, waiting_s=12.0))
    assert policy.propose(waits)[0].group == "text"


def test_soft_shares_follow_the_demand_and_dissolve_when_a_modality_is_rare():
    policy = make_groups("soft_share")
    members = [member(f"i{at}") for at in range(8)]
    found = policy.propose(
        fleet(*members, text=Demand("text", prefill=1.0), multimodal=Demand("multimodal", encode=0.4, prefill=0.6))
    )
    assert sorted(each.group for each in found) == ["multimodal"] * 4 + ["text"] * 4
    assert len({each.instance for each in found}) == 8
    rare = fleet(
        *(member(f"i{at}", group="text") for at in range(8)),
        text=Demand("text", prefill=3.0), multimodal=Demand("multimodal", prefill=0.1),
    )  # fmt: skip
    assert {each.group for each in policy.propose(rare)} == {"shared"}


def test_soft_shares_are_of_those_who_are_for_prompts():
    policy = make_groups("soft_share")
    members = [member(f"i{at}", "EPD" if at < 2 else "EP", "text" if at == 0 else "shared") for at in range(8)]
    demands = {"text": Demand("text", prefill=1.0, decode=9.0), "multimodal": Demand("multimodal", prefill=2.0)}
    found = {each.instance: each.group for each in policy.propose(fleet(*members, **demands))}
    assert found.pop("i0") == "shared" and "i1" not in found
    assert sorted(found.values()) == ["multimodal"] * 4 + ["text"] * 2


# --- scale


def test_instances_are_wanted_for_the_demand():
    policy = make_scale("demand", {"target": 0.5})
    view = fleet(member("a"), text=Demand("text", decode=1.4), max_instances=4)
    (start,) = policy.propose(view)
    assert isinstance(start, StartInstance) and "3 instances" in start.reason
    assert policy.propose(replace(view, starting=2)) == ()
    assert policy.propose(replace(view, max_instances=1)) == ()


def test_from_none_one_is_started_for_who_waits():
    policy = make_scale("demand")
    view = fleet(text=Demand("text", waiting=1, waiting_s=0.1), min_instances=0, max_instances=2)
    assert [type(each) for each in policy.propose(view)] == [StartInstance]
    assert policy.propose(replace(view, text=Demand("text"))) == ()


@pytest.mark.parametrize(("sleeps", "kind"), [(True, SleepInstance), (False, StopInstance)])
def test_one_sleeps_or_stops_when_fewer_have_been_enough_for_long(sleeps, kind):
    policy = make_scale("demand", {"patience_ns": 100, "sleeps": sleeps})
    view = fleet(member("a", decodes=3), member("b"), max_instances=4)
    assert policy.propose(replace(view, now_ns=0)) == policy.propose(replace(view, now_ns=99)) == ()
    (found,) = policy.propose(replace(view, now_ns=100))
    assert (type(found), found.instance) == (kind, "b")
    busy = replace(view, text=Demand("text", decode=1.4), now_ns=150)
    assert policy.propose(busy) == policy.propose(replace(view, now_ns=249)) == (), "the break counts"


def test_who_fell_asleep_last_is_woken_and_for_a_shorter_wait_than_a_start():
    policy = make_scale("demand", {"start_s": 30.0, "wake_s": 2.0})
    view = fleet(member("a"), text=Demand("text", decode=0.1, waiting=9, waiting_s=5.0), max_instances=4)
    assert policy.propose(view) == (), "a start would take longer"
    sleepers = (SleeperView("b", "shared", 10), SleeperView("c", "shared", 20))
    (wake,) = policy.propose(replace(view, sleeping=sleepers))
    assert isinstance(wake, WakeInstance) and wake.instance == "c" and "9 requests wait" in wake.reason
    short = replace(view, text=replace(view.text, waiting_s=1.0), sleeping=sleepers)
    assert policy.propose(short) == ()
    assert policy.propose(replace(view, sleeping=sleepers, starting=1)) != ()
    assert policy.propose(replace(view, sleeping=sleepers, starting=3)) == ()


def test_who_has_slept_for_long_is_stopped_the_first_first():
    policy = make_scale("demand", {"stop_after_ns": 100, "patience_ns": 10**12})
    sleepers = (SleeperView("b", "shared", 20), SleeperView("c", "shared", 10))
    view = fleet(member("a"), sleeping=sleepers, max_instances=4)
    assert policy.propose(replace(view, now_ns=109)) == ()
    (stop,) = policy.propose(replace(view, now_ns=130))
    assert (type(stop), stop.instance) == (StopInstance, "c")
    (wake,) = policy.propose(replace(view, now_ns=130, text=Demand("text", decode=1.0)))
    assert isinstance(wake, WakeInstance), "not while more are wanted"


def test_what_is_left_of_a_demand_that_has_ended_is_none():
    policy = make_scale("demand", {"patience_ns": 0})
    view = fleet(member("a"), text=Demand("text", decode=0.001), min_instances=0, max_instances=4)
    assert [type(each) for each in policy.propose(view)] == [SleepInstance]
    assert policy.propose(replace(view, min_instances=1)) == ()
    assert policy.propose(replace(view, text=Demand("text", decode=0.1))) == ()


def test_stages_of_modalities():
    assert stages_of("text") == Role.PREFILL | Role.DECODE and stages_of("multimodal") == ALL_ROLES


# --- enough_decoders


def asking(prefill, decode, encode=0.0, members=8, decoders=8, tpot_ms=25):
    """Eight instances, of which the first `decoders` decode; demand in instances."""
    each = [member(f"i{at}", "EPD" if at < decoders else "EP", decodes=2) for at in range(members)]
    demand = Demand("text", rate=1.0, encode=encode, prefill=prefill, decode=decode)
    return replace(fleet(*each, text=demand, mean_tpot_s=0.02), slo=Slo(tpot_ns=tpot_ms * 1_000_000))


def test_steady_tpot():
    """10 ms without sequences; half of the time for prompts doubles it; no more than all of the time can be asked for."""
    assert steady_tpot_s(0, 0, 0.0, RATES) == pytest.approx(10e-3)
    assert steady_tpot_s(0, 0, 0.5, RATES) == pytest.approx(20e-3)
    tpot_s = steady_tpot_s(4000, 0, 0.2, RATES)  # 4000 T sequences of 0.1 ms, a fifth for prompts
    assert tpot_s == pytest.approx(10e-3 + 4000 * tpot_s * 1e-4 + 0.2 * tpot_s)
    assert steady_tpot_s(10_000, 0, 0.0, RATES) == float("inf")


@pytest.mark.parametrize(
    ("prefill", "decode", "tpot_ms", "decoders"),
    [
        (0.5, 0.5, 25, 8),  # light: prompts hardly disturb
        (5.0, 1.0, 25, 3),  # they would: three decode
        (5.0, 1.0, 300, 8),  # nobody has promised as much
        (6.0, 6.0, 11, 8),  # no half of them could keep that: all help
    ],
)
def test_as_many_decode_as_keep_the_tpot(prefill, decode, tpot_ms, decoders):
    policy = EnoughDecoders(RATES)
    proposals = policy.propose(asking(prefill, decode, tpot_ms=tpot_ms))
    assert sum(Role.DECODE not in each.roles for each in proposals) == 8 - decoders
    assert all(isinstance(each, SetRoles) and each.roles == Role.ENCODE | Role.PREFILL for each in proposals)


def test_seats_ask_for_decoders():
    """The same demand, but few sequences fit on an instance."""
    assert EnoughDecoders(RATES, seats=1000).wanted(asking(4.0, 2.5)) == 3
    assert EnoughDecoders(RATES, seats=20).wanted(asking(4.0, 2.5)) == 8


def test_two_of_eight_decode_only_with_room_to_spare_and_not_at_first():
    policy = EnoughDecoders(RATES)
    assert EnoughDecoders(RATES, few_tpot_share=0.95, few_seats_share=0.85).wanted(asking(5.0, 2.5)) == 2
    assert EnoughDecoders(RATES, few_seats_share=0.85).wanted(asking(5.0, 2.5)) == 3, "0.7 of the TPOT would not do"
    assert EnoughDecoders(RATES, few_tpot_share=0.95).wanted(asking(5.0, 2.5)) == 3, "nor would 0.4 of the seats"
    assert policy.wanted(asking(5.0, 2.5)) == 3
    assert policy.wanted(asking(5.0, 0.3)) == 2
    first = policy.propose(asking(5.0, 0.3))
    assert sum(Role.DECODE not in each.roles for each in first) == 8 - 3
    later = policy.propose(asking(5.0, 0.3, decoders=3))
    assert [(each.instance, each.roles) for each in later] == [("i0", Role.ENCODE | Role.PREFILL)]


def test_all_do_everything_again_when_it_is_quiet():
    proposals = EnoughDecoders(RATES).propose(asking(0.3, 0.3, decoders=3))
    assert {(each.instance, each.roles) for each in proposals} == {(f"i{at}", ALL_ROLES) for at in range(3, 8)}


def test_near_the_border_nothing_changes():
    """A demand that lies between the two answers changes nobody in either state."""
    policy = EnoughDecoders(RATES)
    border = next(at / 20 for at in range(120) if policy.wanted(asking(at / 20, 2.0)) < 8)
    assert policy.propose(asking(border, 2.0, decoders=8)) == ()
    assert policy.propose(asking(border, 2.0, decoders=3)) == ()
