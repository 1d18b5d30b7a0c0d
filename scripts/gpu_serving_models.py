"""Random models of known shapes on a device, and instances of the built-in engine around them: for scripts/gpu_serving.py."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tierline.core.instance_actions import TellMoved, TellTokens
from tierline.core.instance_events import RequestQueued
from tierline.core.request import Request, Sampling
from tierline.engine import attention
from tierline.engine import model as models
from tierline.engine.arena import KvArena
from tierline.engine.cuda_graphs import DecodeGraphs
from tierline.engine.encoder import EncoderLane
from tierline.engine.families.text import TextFamily
from tierline.engine.instance import Instance
from tierline.engine.runner import ModelRunner
from tierline.policies.batching import make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_state import InstanceLimits
from tierline.testing.graphed import run_again

BLOCK_TOKENS = 16
SMOLLM2_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_3B = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: Mapping[str, Mapping[str, Any]] = {"smollm2-135m": SMOLLM2_135M, "llama-3b": LLAMA_3B, "tiny": TINY}


def config_of(shape: str, context: int = 8192) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[shape], max_position_embeddings=context, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )


def random_family(shape: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> TextFamily:
    """A Llama model of `shape` whose weights are made on the device; nothing is downloaded."""
    from transformers import AttentionInterface, LlamaForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Any = LlamaForCausalLM(config_of(shape))
    finally:
        torch.set_default_dtype(before)
    model.eval().requires_grad_(False)
    AttentionInterface.register(attention.NAME, attention.paged_attention)
    return TextFamily(model, model.config, "")


def use_ours(family: TextFamily, ours: bool) -> None:
    """Whether the model attends over the arena, or as Transformers does by itself."""
    family.backbone.config._attn_implementation = attention.NAME if ours else "sdpa"


@dataclass(slots=True)
class Desk:
    """Where instances of one process send and tell: messages wait in `mail` until somebody delivers them."""

    mail: list[tuple[str, str, Any, torch.Tensor | None]] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    last_ns: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    moved_ns: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)


class DeskPort:
    def __init__(self, name: str, desk: Desk) -> None:
        self._name = name
        self._desk = desk

    def send(self, peer: str, event: Any, payload: torch.Tensor | None) -> None:
        self._desk.mail.append((self._name, peer, event, payload))

    def tell(self, message: Any, logprobs: Any) -> None:
        desk = self._desk
        if isinstance(message, TellTokens):
            desk.tokens[message.request_id] += message.tokens
            desk.last_ns[self._name, message.request_id].append(time.perf_counter_ns())
            if message.finish:
                desk.finished.add(message.request_id)
        elif isinstance(message, TellMoved):
            desk.moved_ns[message.request_id] = time.perf_counter_ns()


@dataclass(slots=True)
class Engine:
    """One instance, its arena and its graphs, if it has any."""

    instance: Instance
    arena: KvArena
    desk: Desk
    graphs: DecodeGraphs | None

    def close(self) -> None:
        self.instance.close()


def make_engine(
    name: str,
    family: TextFamily,
    desk: Desk,
    blocks: int,
    *,
    graphs: bool = False,
    token_budget: int = 2048,
    prefix_caching: bool = False,
) -> Engine:
    use_ours(family, ours=True)
    kv, weight = models.kv_shape(family.config), family.embedding.weight
    shape = (kv.layers, blocks + graphs, BLOCK_TOKENS, kv.kv_heads, kv.head_dim)
    arena = KvArena(*shape, weight.dtype, weight.device)
    limits = InstanceLimits(
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        token_budget=token_budget,
        context_tokens=models.context_tokens(family.config),
        prefix_caching=prefix_caching,
    )
    embeddings: dict[str, torch.Tensor] = {}
    runner = ModelRunner(family, arena, (), embeddings)
    made = None
    if graphs:
        made = DecodeGraphs(family.backbone, arena, scratch=blocks, record=None if weight.is_cuda else run_again)
        runner.use_graphs(made)
    scheduler = InstanceScheduler(name, limits, make_batching("sarathi"))
    lane = EncoderLane(family, lambda: None)
    instance = Instance(name, scheduler, runner, arena, lane, embeddings, DeskPort(name, desk))
    return Engine(instance, arena, desk, made)


def prompts_of(count: int, tokens: int, vocabulary: int, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(vocabulary) for _ in range(tokens)) for _ in range(count)]


def queue(engine: Engine, prompts: Sequence[tuple[int, ...]], output_tokens: int, prefix: str) -> list[str]:
    names = []
    for place, prompt in enumerate(prompts):
        name = f"{prefix}{place}"
        sampling = Sampling(output_tokens, temperature=0.0, ignore_eos=True)
        engine.instance.deliver(RequestQueued(Request(name, prompt, sampling, arrived_ns=place)))
        names.append(name)
    return names
