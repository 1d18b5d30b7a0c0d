"""Puts an instance together: model, arena, scheduler, encoder lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tierline.core.errors import InvalidInput
from tierline.engine import model as models
from tierline.engine.arena import KvArena
from tierline.engine.cuda_graphs import DecodeGraphs
from tierline.engine.encoder import EncoderLane
from tierline.engine.families.text import TextFamily
from tierline.engine.instance import Instance, Port
from tierline.engine.pace import PacedDevice, PacedPort, paced_times
from tierline.engine.packing import can_pack
from tierline.engine.runner import ModelRunner
from tierline.engine.settings import InstanceSettings
from tierline.perf.device_times import stage_times
from tierline.perf.fitted_rates import FittedRates
from tierline.perf.serving_demand import StageRates
from tierline.perf.stage_time_online import OnlineTimes
from tierline.policies.batching import make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_state import InstanceLimits

CPU_KV_BYTES = 1 << 30
CUDA_KV_SHARE = 0.85  # of the memory that is free once the weights are there


@dataclass(frozen=True, slots=True)
class Built:
    instance: Instance
    scheduler: InstanceScheduler
    family: TextFamily
    arena: KvArena
    limits: InstanceLimits
    weights_bytes: int


def build(settings: InstanceSettings, port: Port, wake: Callable[[], None]) -> Built:
    """Load the model and make the instance; `wake` is called from another thread when an image has been encoded."""
    if settings.dtype not in models.DTYPES:
        raise InvalidInput(f"dtype '{settings.dtype}': {', '.join(models.DTYPES)} are allowed.")
    dtype, device = models.DTYPES[settings.dtype], torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    family = models.load(settings.model, dtype, device)
    weights = sum(parameter.nbytes for parameter in family.model.parameters())
    limits = limits_of(settings, family.config, dtype, device)
    kv = models.kv_shape(family.config)
    graphs = settings.cuda_graphs and device.type == "cuda"
    blocks = limits.blocks + graphs  # one for the rows that pad a graph
    arena = KvArena(kv.layers, blocks, limits.block_tokens, kv.kv_heads, kv.head_dim, dtype, device)
    embeddings: dict[str, torch.Tensor] = {}
    runner = ModelRunner(family, arena, sorted(limits.end_tokens), embeddings)
    if settings.pack and can_pack(dtype, device):
        runner.pack()
    if graphs:
        runner.use_graphs(DecodeGraphs(family.backbone, arena, scratch=limits.blocks))
    pace, times = None, paced_times(settings)
    observed = None if times is not None or not settings.profile else _profiled(settings)
    rates = None if times is not None else FittedRates(StageRates.of(observed) if observed is not None else None)
    policy = make_batching(settings.batching, settings.batching_options, times or observed, settings.slo)
    scheduler = InstanceScheduler(settings.name, limits, policy, settings.roles)
    if times is not None:
        if family.takes_images:
            times.encode_s((1,))  # raises where nothing is known of an encoder
        pace = PacedDevice(times, prepares=settings.encoder == "blocking")
        port = PacedPort(port, times, runner.embedding_weight.shape[-1] * dtype.itemsize)
    lane = EncoderLane(family, wake, pace, beside=settings.encoder == "overlapped")
    instance = Instance(
        settings.name, scheduler, runner, arena, lane, embeddings, port, pace, observed, settings.encoder, rates
    )
    return Built(instance, scheduler, family, arena, limits, weights)


def _profiled(settings: InstanceSettings) -> OnlineTimes:
    """Times of the profile, which the instance fits anew as it runs. Raises `InvalidInput` where it is of another device."""
    return OnlineTimes(stage_times(settings.profile, device=device_label(settings.device)))


def device_label(device: str) -> str:
    """What a profile calls a device: `cpu`, or the GPU's name."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(torch.device(device))


def limits_of(settings: InstanceSettings, config: Any, dtype: torch.dtype, device: torch.device) -> InstanceLimits:
    """Limits within the device's memory, or within that of the device that is played: as many positions of KV and of images
    as fit there, and its token budget. Raises `InvalidInput` where not even two blocks fit."""
    kv = models.kv_shape(config)
    block_bytes = KvArena.bytes_per_block(kv.layers, settings.block_tokens, kv.kv_heads, kv.head_dim, dtype)
    context = models.context_tokens(config)
    if settings.context_tokens:
        context = min(context, settings.context_tokens)
    budget, token_budget, pool_bytes = settings.kv_bytes, settings.token_budget, settings.pool_bytes
    if (paced := paced_times(settings)) is not None:
        budget = budget or paced.kv_tokens // settings.block_tokens * block_bytes
        token_budget = max(1, token_budget // settings.pace_positions)
        embedding_bytes = config.get_text_config().hidden_size * dtype.itemsize
        pool_bytes = pool_bytes * embedding_bytes // paced.embedding_token_bytes
    if not budget:
        budget = int(torch.cuda.mem_get_info(device)[0] * CUDA_KV_SHARE) if device.type == "cuda" else CPU_KV_BYTES
    # More than every sequence at its longest can never be used.
    most = settings.sequence_limit * -(-context // settings.block_tokens)
    blocks = min(budget // block_bytes, most)
    if blocks < 2:
        raise InvalidInput(f"KV memory of {budget} bytes: one block takes {block_bytes}, and two are needed at least.")
    return InstanceLimits(
        blocks=blocks,
        block_tokens=settings.block_tokens,
        token_budget=token_budget,
        sequence_limit=settings.sequence_limit,
        pool_bytes=pool_bytes,
        context_tokens=min(context, blocks * settings.block_tokens),
        end_tokens=frozenset(models.end_tokens(settings.model, config)),
        prefix_caching=settings.prefix_caching,
    )
