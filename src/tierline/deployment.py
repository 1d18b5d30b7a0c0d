"""The composition root of the serving tier: what `tierline serve` was told -> instances, scheduler, generator."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierline.core.errors import InvalidInput, MissingExtra
from tierline.core.request import ALL_ROLES, Role
from tierline.core.slo import Slo
from tierline.policies.batching import make_batching
from tierline.policies.routing import make_routing
from tierline.presets import MAX_INSTANCES, STATIC, Choice, ServingPreset, Slot, parse_layout, preset_of

if TYPE_CHECKING:
    from tierline.backends.serving.generator import EngineGenerator
    from tierline.backends.serving.nursery import Host
    from tierline.core.serving_contracts import ModelText
    from tierline.core.stage_times import StageTimes
    from tierline.engine.settings import InstanceSettings
    from tierline.schedulers.serving import ServingScheduler

SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class DeploymentOptions:
    """What `tierline serve` can be told of its instances. `roles`: "" = every instance does all; else one group of letters
    an instance (`E,P,D,D`), or groups with counts (`1E2P1D`). `device` "auto" = CUDA devices if there are any, one an
    instance in turn, else the CPU; `dtype` "auto" = bf16. `threads` 0 = the cores divided over the instances. `pack` None =
    pack weights for this CPU where there is one instance. Bytes: `kv_bytes` (0 = chosen), `pool_bytes`. `pace`: instances
    play this device and model (`InstanceSettings`). `policy`: a preset (`presets.preset_of`), which then says roles (unless
    given), batching and routing; "" = nobody changes anything. `slo`: as `Slo.parse` takes it. `profile`: the name of stage
    times of this device with the model ("" = those of `pace`, else none). `min_instances`, `max_instances`: where the policy
    may start, put to sleep, wake and stop them (0 = it may not). `token_budget` 0 = the policy's. `record`: a file for every
    event and what was decided."""

    model: str = "tiny-vlm"
    instances: int = 0
    roles: str = ""
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    batching: str = "sarathi"
    routing: str = "least_loaded"
    transfer: str = "shm"
    kv_bytes: int = 0
    pool_bytes: int = 256 << 20
    block_tokens: int = 16
    token_budget: int = 0
    sequence_limit: int = 256
    context_tokens: int = 0
    queue_limit: int = 4096
    prefix_caching: bool = True
    pack: bool | None = None
    pace: str = ""
    pace_positions: int = 1
    pace_stretch: float = 1.0
    policy: str = ""
    slo: str = ""
    profile: str = ""
    min_instances: int = 1
    max_instances: int = 0
    record: str = ""

    def __post_init__(self) -> None:
        """Raises `InvalidInput` for what cannot be."""
        layout = self.layout
        Slo.parse(self.slo)
        if self.max_instances and not self.min_instances <= len(layout) <= self.max_instances <= MAX_INSTANCES:
            raise InvalidInput(
                f"{self.min_instances} to {self.max_instances} instances, {len(layout)} at the start: these must be in "
                f"order, and {MAX_INSTANCES} at most are allowed."
            )
        if len(layout) > MAX_INSTANCES:
            raise InvalidInput(f"{len(layout)} instances: {MAX_INSTANCES} at most are allowed.")
        together = Role(0)
        for roles in layout:
            together |= roles
        if together != ALL_ROLES:
            missing = (ALL_ROLES & ~together).letters
            raise InvalidInput(
                f"--roles {self.roles}: no instance may do {missing}; encode, prefill and decode are all needed."
            )
        for name in ("block_tokens", "sequence_limit", "queue_limit"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} {getattr(self, name)}: 1 or more is allowed.")
        for name in ("kv_bytes", "pool_bytes", "threads", "context_tokens", "token_budget"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"{name} {getattr(self, name)}: 0 or more is allowed.")
        if self.transfer not in ("shm", "zmq"):
            raise InvalidInput(f"--transfer {self.transfer}: shm (one host) or zmq is allowed.")
        make_batching(self.batching)
        make_routing(self.routing)
        times_of(self)
        if not self.pace and (self.pace_positions, self.pace_stretch) != (1, 1.0):
            raise InvalidInput(
                "--pace-positions and --pace-stretch say how a device is played: --pace DEVICE:MODEL is needed."
            )

    @property
    def layout(self) -> tuple[Role, ...]:
        """The roles of each instance."""
        return tuple(slot.roles for slot in self.slots)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """How each instance begins. Roles that are given beat those of the policy."""
        if self.roles or not self.policy:
            return parse_layout(self.roles, self.instances)
        if self.instances < 0:
            raise InvalidInput(f"--instances {self.instances}: 1 or more is allowed.")
        return self.preset.layout(self.instances or (0 if self.policy.startswith(STATIC) else 1))

    @property
    def preset(self) -> ServingPreset:
        """What decides. Without a policy: the routing and batching that were given, and nobody changes anything."""
        if not self.policy:
            return ServingPreset("", "as given", routing=Choice(self.routing), batching=Choice(self.batching))
        return preset_of(self.policy).between(self.min_instances, self.max_instances)


def what_differs(options: DeploymentOptions) -> str:
    """One sentence on what of the policy real instances cannot do, "" where they do all of it."""
    if options.preset.encoder == "blocking" and not options.pace:
        return (
            f"Policy {options.policy}: pictures are decoded in the front door, which does not stall iterations here; the "
            "rest of preparing and encoding them does."
        )
    return ""


def parse_size(text: str) -> int:
    """Bytes of `512M`, `1.5G`, `1000000`. Raises `InvalidInput`.

    >>> parse_size("1.5K")
    1536
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise InvalidInput(f"size '{text}': a number of bytes with K, M or G is needed, as in 512M.")
    return int(float(match[1]) * SIZES[match[2].upper()])


def need_serve_extra() -> None:
    """Raises `MissingExtra` where what the engine needs is not installed."""
    import importlib.util

    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "zmq", "PIL")):
        raise MissingExtra("serving a model", "serve")


def devices_of(device: str, count: int) -> tuple[str, ...]:
    """A device for each of `count` instances. Raises `InvalidInput`."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return ("cpu",) * count
    if device == "cuda" and torch.cuda.is_available():
        return tuple(f"cuda:{place % torch.cuda.device_count()}" for place in range(count))
    if re.fullmatch(r"cuda:\d+", device) and torch.cuda.is_available() and int(device[5:]) < torch.cuda.device_count():
        return (device,) * count
    raise InvalidInput(
        f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; auto or cpu is allowed."
    )


def instance_settings(options: DeploymentOptions) -> dict[str, InstanceSettings]:
    """Settings of each instance by name, without addresses."""
    from tierline.engine import model as models
    from tierline.engine.settings import InstanceSettings

    layout, preset = options.layout, options.preset
    dtype = "bf16" if options.dtype == "auto" else options.dtype
    if dtype not in models.DTYPES:
        raise InvalidInput(f"--dtype {options.dtype}: auto, {', '.join(models.DTYPES)} are allowed.")
    cores = len(os.sched_getaffinity(0))
    threads = options.threads or max(1, cores // len(layout))
    pack = options.pack if options.pack is not None else len(layout) == 1
    return {
        f"i{place}": InstanceSettings(
            name=f"i{place}",
            model=models.locate(options.model),
            run_dir="",
            shm_dir="",
            server="",
            endpoint="",
            dtype=dtype,
            device=device,
            roles=roles,
            batching=preset.batching.name,
            batching_options=dict(preset.batching.options),
            slo=Slo.parse(options.slo),
            profile=options.profile,
            transfer="zmq" if options.transfer == "zmq" else "shm",
            threads=threads,
            pack=pack,
            kv_bytes=options.kv_bytes,
            block_tokens=options.block_tokens,
            token_budget=options.token_budget or preset.token_budget,
            encoder=preset.encoder,
            sequence_limit=options.sequence_limit,
            pool_bytes=options.pool_bytes if preset.image_caching else 0,
            context_tokens=options.context_tokens,
            prefix_caching=options.prefix_caching and preset.prefix_caching,
            pace=options.pace,
            pace_positions=options.pace_positions,
            pace_stretch=options.pace_stretch,
        )
        for place, (roles, device) in enumerate(zip(layout, devices_of(options.device, len(layout)), strict=True))
    }


def times_of(options: DeploymentOptions) -> StageTimes | None:
    """What is known of an instance's speed, by the name of a profile or of the device that is played."""
    if not options.profile and not options.pace:
        return None
    from tierline.perf.device_times import stage_times
    from tierline.perf.scaled_times import ScaledTimes
    from tierline.perf.serving_profile import model_label

    if options.profile:
        return stage_times(options.profile, model=model_label(options.model))
    return ScaledTimes(stage_times(options.pace), options.pace_positions, options.pace_stretch)


def build_scheduler(options: DeploymentOptions) -> ServingScheduler:
    """The scheduler of a deployment, live or replayed."""
    slots = {f"i{place}": slot for place, slot in enumerate(options.slots)}
    return options.preset.make_scheduler(
        slots, times=times_of(options), slo=Slo.parse(options.slo), queue_limit=options.queue_limit
    )


def build_recorded(setting: Mapping[str, Any]) -> ServingScheduler:
    """A fresh scheduler like that of a recorded run. Raises `InvalidInput`."""
    known = {field.name for field in fields(DeploymentOptions)}
    try:
        options = DeploymentOptions(**{key: value for key, value in setting.items() if key in known})
    except TypeError as error:
        raise InvalidInput(f"The record's setting cannot be used: {error}.") from error
    return build_scheduler(options)


def _as_setting(options: DeploymentOptions) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(DeploymentOptions)}


def build_generator(
    options: DeploymentOptions,
    on_failed_start: Callable[[str], None],
    *,
    hosts: Mapping[str, Host] | None = None,
    listen: str = "",
) -> EngineGenerator:
    """Start the instances; they join as they get ready. `on_failed_start` is told, from another thread, why an instance
    cannot be started at all. `hosts` of instances `i0`, `i1`, ... that run elsewhere, and `listen`: `TorchInstances`."""
    from tierline.backends.serving.generator import EngineGenerator, Mailboxes
    from tierline.backends.serving.torch import TorchInstances
    from tierline.clock import WallClock
    from tierline.runtime.driver import Driver
    from tierline.runtime.serving_record import ServingRecord

    clock, mailboxes = WallClock(), Mailboxes()
    scheduler = build_scheduler(options)
    record = ServingRecord(Path(options.record), _as_setting(options)) if options.record else None
    instances = TorchInstances(
        instance_settings(options), clock, mailboxes, on_failed_start, hosts=hosts, listen=listen
    )
    driver = Driver(scheduler, instances, clock, record)
    about = {key: getattr(options, key) for key in ("model", "policy", "slo", "pace", "pace_stretch")}
    end_record = record.close if record else None
    return EngineGenerator(scheduler, instances, driver, mailboxes, clock.close, end_record, about)


def build_text(options: DeploymentOptions, served_name: str = "") -> ModelText:
    """Tokenizer, chat template and image layout of the model. Raises `InvalidInput` where it cannot be opened."""
    import torch

    from tierline.core.request import ServedModel
    from tierline.engine import model as models
    from tierline.engine.build import limits_of
    from tierline.engine.families import image_layout_of
    from tierline.engine.text import TransformersText

    config, folder = models.read_config(options.model), models.locate(options.model)
    settings = next(iter(instance_settings(options).values()))
    limits = limits_of(settings, config, models.DTYPES[settings.dtype], torch.device("cpu"))
    layout = image_layout_of(config, folder)
    if options.pace and layout is not None:
        from tierline.perf.device_times import stage_times

        stage_times(options.pace).encode_s((1,))  # raises where nothing is known of an encoder
    model = ServedModel(
        name=served_name or (Path(folder).resolve().name if Path(options.model).is_dir() else options.model),
        context_tokens=limits.context_tokens,
        takes_images=layout is not None,
        vocabulary=config.get_text_config().vocab_size,
        end_tokens=tuple(sorted(limits.end_tokens)),
    )
    return TransformersText(
        folder, model, placeholder=config.image_token_id if layout is not None else None, layout=layout
    )
