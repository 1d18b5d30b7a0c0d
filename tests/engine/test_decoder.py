"""The native parts of a decoder layer give what PyTorch's operations give; the fused backbone gives what Transformers' gives,
and takes only backbones that it knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from tierline.core.request import Role  # noqa: E402
from tierline.engine import attention  # noqa: E402
from tierline.engine.arena import KvArena  # noqa: E402
from tierline.engine.attention import Decodes, PromptChunk, StepLayout  # noqa: E402
from tierline.engine.cpu_attention import native  # noqa: E402
from tierline.engine.decoder import Decoder, can_fuse  # noqa: E402
from tierline.engine.runner import ModelRunner  # noqa: E402
from tierline.engine.tiled import Tiles  # noqa: E402
from tierline.schedulers.instance_state import InstanceLimits  # noqa: E402
from tierline.testing.checkpoints import CONTEXT_TOKENS  # noqa: E402
from tierline.testing.layouts import Cluster, Disturbance  # noqa: E402

if TYPE_CHECKING:
    from tests.engine.conftest import Case

pytestmark = pytest.mark.skipif(native is None, reason="the native part (tierline._attention) is not built here")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (3, 7), (5, 64), (17, 33), (300, 576)])
@pytest.mark.parametrize("adds", [False, True])
def test_the_norm_is_pytorchs(dtype: torch.dtype, rows: int, width: int, adds: bool) -> None:
    torch.manual_seed(rows * width)
    x, added = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype)
    weight, eps = torch.rand(width).to(dtype) + 0.5, 1e-5
    total = x + added if adds else x.clone()
    wide = total.float()
    wanted = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(dtype)
    out = torch.empty_like(x)
    native.rms_norm(
        x.data_ptr(),
        added.data_ptr() if adds else 0,
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        width,
        eps,
        dtype is torch.bfloat16,
    )
    assert torch.equal(x, total)
    if dtype is torch.float32:
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
    else:  # sums in another order may tip the last bit of a few
        torch.testing.assert_close(out, wanted, rtol=1.6e-2, atol=0)
        assert (out != wanted).float().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "placed"), [(1, 1), (5, 3), (130, 130)])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 2, 16), (2, 2, 6), (5, 1, 34)])
def test_rotation_and_placing_are_pytorchs(
    dtype: torch.dtype, rows: int, placed: int, heads: int, kv_heads: int, head_dim: int
) -> None:
    torch.manual_seed(rows + head_dim)
    positions = 2 * rows + 3
    qkv = torch.randn(rows, heads + 2 * kv_heads, head_dim).to(dtype)
    cos, sin = torch.randn(rows, head_dim).to(dtype), torch.randn(rows, head_dim).to(dtype)
    slots = torch.randperm(positions)[:placed]
    keys, values = (torch.full((kv_heads, positions, head_dim), -7.0, dtype=dtype) for _ in range(2))
    turned = qkv[:, : heads + kv_heads]
    half = torch.cat((-turned[..., head_dim // 2 :], turned[..., : head_dim // 2]), dim=-1)
    turned = turned * cos[:, None] + half * sin[:, None]
    wanted = torch.cat((turned, qkv[:, heads + kv_heads :]), dim=1)
    wanted_keys, wanted_values = keys.clone(), values.clone()
    wanted_keys[:, slots] = wanted[:placed, heads : heads + kv_heads].transpose(0, 1)
    wanted_values[:, slots] = wanted[:placed, heads + kv_heads :].transpose(0, 1)
    native.rotate_and_place(
        qkv.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        slots.data_ptr(),
        rows,
        placed,
        positions,
        heads,
        kv_heads,
        head_dim,
        dtype is torch.bfloat16,
    )
    same: Callable[..., None] = torch.testing.assert_close
    exact = {"rtol": 0, "atol": 0} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    same(qkv, wanted, **exact)
    same(keys, wanted_keys, **exact)
    same(values, wanted_values, **exact)


needs_tiles = pytest.mark.skipif(
    native is None or not native.can_tile(), reason="this processor has no tiles for bf16 (AMX)"
)


@needs_tiles
@pytest.mark.parametrize(
    ("rows", "n", "k"), [(1, 32, 32), (5, 64, 160), (16, 96, 64), (33, 32, 608), (48, 64, 32), (1100, 96, 64)]
)
def test_a_product_of_tiles_is_pytorchs(rows: int, n: int, k: int) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, k).bfloat16(), torch.randn(n, k).bfloat16()
    wanted = (x.float() @ weight.float().T).bfloat16()
    out = Tiles(weight).times(x)
    assert out.shape == wanted.shape
    torch.testing.assert_close(out, wanted, rtol=1e-2, atol=1e-3 * k**0.5)


def small_llama(**changes: Any) -> Any:
    """A backbone in bf16 whose attention is ours."""
    transformers.AttentionInterface.register(attention.NAME, attention.paged_attention)
    shape = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 64}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64, "attn_implementation": attention.NAME}
    kind, config = transformers.LlamaModel, transformers.LlamaConfig
    if changes.pop("qwen2", False):
        kind, config = transformers.Qwen2Model, transformers.Qwen2Config
    torch.manual_seed(1)
    made = kind(config(**{**shape, **heads, **changes})).to(torch.bfloat16).eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return made


def decodes_and_chunks(arena: KvArena, decoding: int, chunk_tokens: int) -> tuple[StepLayout, torch.Tensor]:
    """Sequences of two blocks that decode, then a chunk of a prompt, whose first block is cached; positions."""
    block, blocks = arena.block_tokens, arena.keys.shape[2]
    tables = torch.arange(2 * decoding, dtype=torch.int32).view(decoding, 2)
    lengths = 17 + torch.arange(decoding, dtype=torch.int32) % 16
    slots = (tables[:, 1] * block + lengths - 1 - block).tolist()
    positions = (lengths - 1).tolist()
    chunks = []
    if chunk_tokens:
        own = torch.arange(blocks * block)[2 * decoding * block :][: block + chunk_tokens]
        mask = torch.ones(chunk_tokens, len(own), dtype=torch.bool).tril(block)
        chunks.append(PromptChunk(decoding, chunk_tokens, block, own, mask))
        slots += own[block:].tolist()
        positions += range(block, block + chunk_tokens)
    decodes = Decodes.of(arena, tables, lengths) if decoding else None
    return StepLayout(arena, torch.tensor(slots), decodes, tuple(chunks)), torch.tensor([positions])


@needs_tiles
@pytest.mark.parametrize(("decoding", "chunk_tokens"), [(1, 0), (3, 0), (16, 0), (18, 0), (0, 40), (2, 17)])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 3}, {"qwen2": True}, {"head_dim": 128}])
def test_tiled_layers_are_transformers_layers(decoding: int, chunk_tokens: int, changes: dict[str, Any]) -> None:
    backbone = small_llama(**changes)
    config = backbone.config
    torch.manual_seed(2)
    inputs = torch.randn(1, decoding + chunk_tokens, config.hidden_size).bfloat16()
    found = []
    for tiled in (False, True):
        arena = KvArena(
            config.num_hidden_layers,
            48,
            16,
            config.num_key_value_heads,
            config.head_dim,
            torch.bfloat16,
            torch.device("cpu"),
        )
        torch.manual_seed(3)
        arena.keys.normal_()
        arena.values.normal_()
        layout, positions = decodes_and_chunks(arena, decoding, chunk_tokens)
        if tiled:
            decoder = Decoder(backbone, lets_go=True)
            assert not hasattr(backbone.layers[0].mlp.down_proj, "weight")
            out = decoder(inputs[0].clone(), positions, layout)
        else:
            attention.use_layout(layout)
            out = backbone(inputs_embeds=inputs.clone(), position_ids=positions, use_cache=False).last_hidden_state[0]
            attention.use_layout(None)
        found.append((out.float(), arena.keys.float(), arena.values.float()))
    for got, wanted in zip(found[1], found[0], strict=True):
        difference = (got - wanted).abs()
        assert difference.mean() < 4e-3 * wanted.abs().mean()
        assert difference.max() < 0.05 * wanted.abs().max()


class Fused(Cluster):
    """All instances run their backbones fused."""

    def _start(self, name: str, family: Any, roles: Role, limits: InstanceLimits, policy: str) -> None:
        super()._start(name, family, roles, limits, policy)
        runner: ModelRunner = self.instances[name]._runner
        assert runner.fuse()
        family.backbone.forward = None  # whoever calls Transformers' own fails


@pytest.fixture
def lent(case: Callable[[str], Case]) -> Any:
    """Cases whose backbones get their forward back."""
    used = []

    def of(kind: str) -> Case:
        made = case(kind)
        used.append(made)
        return made

    yield of
    for made in used:
        for family in made.families:
            vars(family.backbone).pop("forward", None)


@pytest.mark.parametrize(("kind", "layout"), [("llama", "EPD"), ("llama", "P|D"), ("llava-clip", "E|P|D")])
def test_tokens_are_transformers_tokens(lent: Callable[[str], Case], kind: str, layout: str) -> None:
    made = lent(kind)
    limits = InstanceLimits(blocks=400, token_budget=64, context_tokens=CONTEXT_TOKENS, pool_bytes=60_000)
    cluster = Fused(made.families, layout, limits, seed=2)
    for instance in cluster.instances.values():
        instance._runner.few_sizes = layout != "P|D"
    requests, wanted = made.again("")
    cluster.run(requests, made.pictures, Disturbance(move=0.6, roles=0.05))
    cluster.settle()
    assert cluster.faults(wanted) == []
    cluster.close()
    assert cluster.witness.counts["moves"] >= 3


@pytest.mark.parametrize("kind", ["llama", "llava-clip"])
def test_preempted_sequences_go_on(lent: Callable[[str], Case], kind: str) -> None:
    made = lent(kind)
    limits = InstanceLimits(blocks=14, token_budget=64, context_tokens=CONTEXT_TOKENS, pool_bytes=60_000)
    cluster = Fused(made.families, "alone", limits, seed=3)
    requests, wanted = made.again("")
    small = [each for each in requests if len(each.prompt) + each.sampling.max_tokens <= 16 * 12]
    cluster.run(small, made.pictures, Disturbance(arrival=1.0))
    assert cluster.faults({each.request_id: wanted[each.request_id] for each in small}) == []
    cluster.close()
    assert cluster.schedulers["i0"].status().preemptions >= 1


@pytest.mark.parametrize(
    ("kind", "fits"), [("llama", True), ("llava-clip", True), ("qwen3", False), ("qwen2_5_vl", False)]
)
def test_only_known_backbones_are_taken(case: Callable[[str], Case], kind: str, fits: bool) -> None:
    assert can_fuse(case(kind).families[0].backbone) is fits


def test_a_layer_with_another_part_is_not_taken(case: Callable[[str], Case]) -> None:
    backbone = case("llama").families[0].backbone
    layer = backbone.layers[1]
    layer.self_attn.q_norm = torch.nn.Identity()
    try:
        assert not can_fuse(backbone)
    finally:
        del layer.self_attn.q_norm
    assert can_fuse(backbone)
    assert len(Decoder(backbone)._layers) == len(backbone.layers)
