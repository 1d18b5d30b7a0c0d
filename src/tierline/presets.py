"""Presets of the serving tier: which policies make a system, in which layout it begins. One registry.

A preset names groups, stages, routing, batching and their options; `make_scheduler` and `make_batching` make them.
Simulations and deployments use the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tierline.core.batch_view import BatchPolicy
from tierline.core.encoder_kind import EncoderKind
from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.fleet_view import stages_of
from tierline.core.request import ALL_ROLES, Role
from tierline.core.routing_view import MODALITIES, Group
from tierline.core.slo import Slo
from tierline.core.stage_times import StageTimes
from tierline.policies.batching import make_batching
from tierline.policies.groups import make_groups
from tierline.policies.routing import make_routing
from tierline.policies.scale import make_scale
from tierline.policies.stages import make_stages
from tierline.schedulers.serving import ServingScheduler
from tierline.schedulers.serving_elastic import Elasticity

MAX_INSTANCES = 64
STATIC = "static:"


@dataclass(frozen=True, slots=True)
class Slot:
    """An instance at the start."""

    roles: Role = ALL_ROLES
    group: Group = "shared"


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy by name, and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_roles(roles: str, instances: int = 0) -> tuple[Role, ...]:
    """One entry an instance. Raises `InvalidInput`.

    >>> [each.letters for each in parse_roles("E,2PD", 0)]
    ['E', 'PD', 'PD']
    >>> [each.letters for each in parse_roles("1E1P1D", 0)]
    ['E', 'P', 'D']
    >>> len(parse_roles("", 3))
    3
    """
    if instances < 0:
        raise InvalidInput(f"--instances {instances}: 1 or more is allowed.")
    if not roles:
        return (ALL_ROLES,) * (instances or 1)
    layout: list[Role] = []
    for part in re.split(r"[,|]", roles.replace(" ", "")):
        groups = re.findall(r"(\d*)([EPDepd]+)", part)
        if "".join(count + letters for count, letters in groups) != part or not groups:
            raise InvalidInput(
                f"--roles '{roles}': groups of E, P and D are needed, as in 'E,P,D', '2EP,2D' or '1E2P1D'."
            )
        for count, letters in groups:
            if len(count) > 3:
                raise InvalidInput(f"--roles '{roles}': between 1 and {MAX_INSTANCES} instances are allowed.")
            layout += [Role.parse(letters)] * (int(count) if count else 1)
    if not layout or len(layout) > 10 * MAX_INSTANCES:
        raise InvalidInput(f"--roles '{roles}': between 1 and {MAX_INSTANCES} instances are allowed.")
    if instances and len(layout) == 1:
        layout *= instances
    if instances and instances != len(layout):
        raise InvalidInput(f"--instances {instances} and --roles '{roles}' ({len(layout)} instances) do not agree.")
    return tuple(layout)


def parse_layout(text: str, instances: int = 0) -> tuple[Slot, ...]:
    """`2E2P4D`: shared instances; `1P1D+2E2P2D`: those of the text group, then those of the multimodal one. Raises
    `InvalidInput`.

    >>> [(slot.roles.letters, slot.group) for slot in parse_layout("PD+E,PD")]
    [('PD', 'text'), ('E', 'multimodal'), ('PD', 'multimodal')]
    """
    groups = text.split("+")
    if len(groups) == 1:
        return tuple(Slot(roles) for roles in parse_roles(text, instances))
    if len(groups) > 2:
        raise InvalidInput(f"layout '{text}': at most two groups are allowed, text + multimodal, as in 1P1D+2E2P2D.")
    slots = tuple(
        Slot(roles, modality) for part, modality in zip(groups, MODALITIES, strict=True) for roles in parse_roles(part)
    )
    if instances and instances != len(slots):
        raise InvalidInput(f"--instances {instances} and the layout '{text}' ({len(slots)} instances) do not agree.")
    for modality in MODALITIES:
        missing = stages_of(modality) & ~_together([slot for slot in slots if slot.group == modality])
        if missing:
            raise InvalidInput(f"layout '{text}': nobody of the {modality} group may do {missing.letters}.")
    return slots


def coupled_layout(instances: int) -> tuple[Slot, ...]:
    """Everybody does everything, for everybody."""
    return (Slot(),) * instances


def emp_layout(instances: int) -> tuple[Slot, ...]:
    """ElasticMM's: a quarter for text, the rest multimodal, stages apart as far as there are instances; 8 begin as 2 + 6.

    >>> [f"{slot.group[0]}{slot.roles.letters}" for slot in emp_layout(8)]
    ['tP', 'tD', 'mE', 'mE', 'mP', 'mP', 'mD', 'mD']
    """
    if instances < 3:
        return coupled_layout(instances)
    text = max(1, round(instances / 4))
    rest = instances - text
    encode = max(1, rest // 3)
    prefill = max(1, (rest - encode) // 2)
    texts = (
        [Role.PREFILL | Role.DECODE] if text == 1 else [*[Role.PREFILL] * (text // 2), *[Role.DECODE] * (-(-text // 2))]
    )
    if rest == 2:
        others = [Role.ENCODE | Role.PREFILL, Role.DECODE]
    else:
        others = [*[Role.ENCODE] * encode, *[Role.PREFILL] * prefill, *[Role.DECODE] * (rest - encode - prefill)]
    return (*(Slot(roles, "text") for roles in texts), *(Slot(roles, "multimodal") for roles in others))


@dataclass(frozen=True, slots=True)
class ServingPreset:
    """A system. `elastic`: options of `Elasticity` beside its policies. `token_budget`: of an iteration, where no other is
    given. `prefix_caching`, `image_caching`: the two pools of the unified cache. `encoder`: how instances encode.
    `keep_first`: a first token may be told with the second (`ServingScheduler`)."""

    name: str
    idea: str
    layout: Callable[[int], tuple[Slot, ...]] = coupled_layout
    groups: Choice | None = None
    stages: Choice | None = None
    scale: Choice | None = None
    routing: Choice = Choice("least_loaded")
    batching: Choice = Choice("sarathi")
    elastic: Mapping[str, Any] = field(default_factory=dict)
    token_budget: int = 2048
    prefix_caching: bool = True
    image_caching: bool = True
    encoder: EncoderKind = "overlapped"
    keep_first: bool = False

    @property
    def elasticity(self) -> Elasticity:
        return self._elasticity(None)

    def _elasticity(self, times: StageTimes | None) -> Elasticity:
        return Elasticity(
            groups=make_groups(self.groups.name, self.groups.options) if self.groups else None,
            stages=make_stages(self.stages.name, self.stages.options, times) if self.stages else None,
            scale=make_scale(self.scale.name, self.scale.options) if self.scale else None,
            **self.elastic,
        )

    def make_scheduler(
        self,
        slots: Mapping[str, Slot] | None = None,
        *,
        times: StageTimes | None = None,
        slo: Slo | None = None,
        queue_limit: int = 4096,
    ) -> ServingScheduler:
        """A fresh scheduler. `slots`: by the name of an instance's slot, how it begins."""
        return ServingScheduler(
            make_routing(self.routing.name, self.routing.options, times, slo),
            queue_limit,
            elasticity=self._elasticity(times),
            times=times,
            slo=slo,
            groups={name: slot.group for name, slot in (slots or {}).items()},
            keep_first=self.keep_first,
        )

    def make_batching(self, times: StageTimes | None = None, slo: Slo | None = None) -> BatchPolicy:
        """A fresh policy for one instance."""
        return make_batching(self.batching.name, self.batching.options, times, slo)

    def between(self, least: int, most: int) -> ServingPreset:
        """The same system with `least` to `most` instances; 0 at most: as many as there are at the start."""
        if not most:
            return self
        limits = {"min_instances": least, "max_instances": most}
        return replace(self, scale=self.scale or Choice("demand"), elastic={**self.elastic, **limits})

    # --- what it would be without

    def without(self, what: str) -> ServingPreset:
        """The same system without one of its parts (`ABLATIONS`). Raises `UnknownName`."""
        if what not in ABLATIONS:
            raise UnknownName("part of a preset", what, ABLATIONS)
        return replace(ABLATIONS[what](self), name=f"{self.name}-{what}")


def _with(choice: Choice, **options: object) -> Choice:
    return Choice(choice.name, {**choice.options, **options})


def _without_groups(preset: ServingPreset) -> ServingPreset:
    """All instances are shared; the stages stay."""

    def layout(instances: int) -> tuple[Slot, ...]:
        return tuple(Slot(slot.roles) for slot in preset.layout(instances))

    return replace(preset, groups=None, layout=layout)


def _without_deadlines(preset: ServingPreset) -> ServingPreset:
    routing, batching = preset.routing, preset.batching
    return replace(
        preset,
        routing=_with(routing, by_deadline=False) if routing.name == "late_binding" else routing,
        batching=_with(batching, by_deadline=False) if batching.name == "slo_chunk" else batching,
    )


ABLATIONS: Mapping[str, Callable[[ServingPreset], ServingPreset]] = {
    "groups": _without_groups,
    "elasticity": lambda preset: replace(
        preset, groups=None if preset.groups is None else Choice("static"), stages=None
    ),
    "cache": lambda preset: replace(preset, prefix_caching=False, image_caching=False),
    "overlap": lambda preset: replace(preset, encoder="blocking"),
    "deadlines": _without_deadlines,
}
"""By the name of what is left out: groups, elasticity (nothing changes after the start), the unified cache, encoding beside
iterations, the order by deadline."""

PRESETS: Mapping[str, ServingPreset] = {
    preset.name: preset
    for preset in (
        ServingPreset(
            "adaptive",
            "one pool; roles are permissions, groups preferences; a central queue by deadline binds late; chunks keep the "
            "TPOT promised on average; caches draw requests; where prompts beside decodes would break the TPOT, as few "
            "instances decode as keep it",
            groups=Choice("soft_share"),
            stages=Choice("enough_decoders"),
            routing=Choice("late_binding"),
            batching=Choice("slo_chunk"),
            keep_first=True,
        ),
        ServingPreset(
            "emp",
            "ElasticMM as its paper has it: strict groups by burst tolerance; encode, prefill and decode apart, elastic by "
            "gain and cost; first come first served up to the tipping point",
            layout=emp_layout,
            groups=Choice("burst_tolerance"),
            stages=Choice("gain_cost", {"prompt_roles": "P", "decode_roles": "D", "encode_apart": True}),
            routing=Choice("emp"),
        ),
        ServingPreset(
            "emp-paper",
            "`emp` with equations 2 and 3 as they are printed, over one iteration",
            layout=emp_layout,
            groups=Choice("burst_tolerance"),
            stages=Choice("paper"),
            routing=Choice("emp"),
        ),
        ServingPreset(
            "emp-release",
            "`emp` with the fixed thresholds that ElasticMM's release runs, and groups that stay",
            layout=emp_layout,
            groups=Choice("static"),
            stages=Choice("thresholds"),
            routing=Choice("emp"),
            elastic={"period_ns": 1_000_000_000, "cool_down_ns": 0},
        ),
        ServingPreset(
            "coupled",
            "every instance does everything, chunked prefill, both caches: a modern engine whose router knows prefixes",
            routing=Choice("prefix_affinity"),
        ),
        ServingPreset(
            "coupled-512",
            "`coupled` with chunks of 512 tokens",
            routing=Choice("prefix_affinity"),
            batching=Choice("sarathi", {"chunk_tokens": 512}),
        ),
        ServingPreset(
            "coupled-2024",
            "every instance does everything, prompts whole and first, preparing and encoding in the way of iterations: "
            "engines such as vLLM 0.6, which the paper compares with",
            batching=Choice("fcfs"),
            prefix_caching=False,
            image_caching=False,
            encoder="blocking",
        ),
    )
}


def preset_of(name: str) -> ServingPreset:
    """A preset by name, `static:LAYOUT`, or either with `-groups`, `-elasticity`, `-cache`, `-overlap` or `-deadlines` for
    what it shall be without. Raises `UnknownName` or `InvalidInput`.

    >>> preset_of("adaptive-groups").groups is None
    True
    """
    if name in PRESETS:
        return PRESETS[name]
    whole, dash, part = name.rpartition("-")
    if dash and part in ABLATIONS and whole:
        return preset_of(whole).without(part)
    if name.startswith(STATIC):
        return _static(name)
    raise UnknownName("serving policy", name, (*PRESETS, f"{STATIC}2E2P4D"))


def _static(name: str) -> ServingPreset:
    text = name.removeprefix(STATIC)
    slots = parse_layout(text)
    if missing := ALL_ROLES & ~_together(slots):
        raise InvalidInput(
            f"layout '{text}': no instance may do {missing.letters}; encode, prefill and decode are needed."
        )

    def layout(instances: int) -> tuple[Slot, ...]:
        if instances and 1 < len(slots) != instances:
            raise InvalidInput(f"--instances {instances} and policy '{name}' ({len(slots)} instances) do not agree.")
        return parse_layout(text, instances)

    split = any(slot.group != "shared" for slot in slots)
    return ServingPreset(
        name,
        "stages and groups as laid out, for good",
        layout=layout,
        groups=Choice("static") if split else None,
        routing=Choice("emp", {"spill": False}) if split else Choice("prefix_affinity"),
        batching=Choice("sarathi"),
    )


def _together(slots: tuple[Slot, ...] | list[Slot]) -> Role:
    roles = Role(0)
    for slot in slots:
        roles |= slot.roles
    return roles
