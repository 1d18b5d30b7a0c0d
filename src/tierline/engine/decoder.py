"""A Llama-like backbone on a CPU in few calls: what lies between its products is native code (native/engine/decoder_rows).

Transformers' layers make some forty calls of PyTorch each, of which with a few dozen rows most take longer to be called than
to be computed. Here a layer makes nine. Only backbones are taken whose every part is known: by their class, and by the parts
that they have; whatever else there is keeps Transformers' own forward (`runner.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tierline.engine.attention import StepLayout, attend, split_heads
from tierline.engine.cpu_attention import native
from tierline.engine.packing import Gated, PackedLinear, PlainLinear, can_pack, is_silu, joined
from tierline.engine.tiled import TiledStack, can_tile_all

BACKBONES = frozenset({"LlamaModel", "MistralModel", "Qwen2Model"})  # of Transformers: their layers compute the same
ATTENTION_PARTS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
MLP_PARTS = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})
LAYER_PARTS = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
TYPES = (torch.bfloat16, torch.float32)


def can_fuse(backbone: Any) -> bool:
    """Whether `Decoder` computes what this backbone does."""
    if native is None or type(backbone).__name__ not in BACKBONES:
        return False
    weight = backbone.embed_tokens.weight
    if weight.dtype not in TYPES or weight.device.type != "cpu":
        return False
    return _is_norm(backbone.norm, weight.dtype) and all(_is_known(layer, weight.dtype) for layer in backbone.layers)


class Decoder:
    """The backbone's forward. Its weights are copied where they are joined, packed or cut into tiles. With `lets_go` what was
    copied may be deleted: the backbone itself cannot be run any more."""

    def __init__(self, backbone: Any, lets_go: bool = False) -> None:
        weight = backbone.embed_tokens.weight
        make = PackedLinear if can_pack(weight.dtype, weight.device) else PlainLinear
        self._rotary = backbone.rotary_emb
        self._tiled = TiledStack(backbone, lets_go) if can_tile_all(backbone) else None
        self._layers = [_Layer(layer, make) for layer in backbone.layers if self._tiled is None]
        self._norm = _Norm(backbone.norm)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, layout: StepLayout) -> torch.Tensor:
        """Last hidden states [rows, hidden] of `x` [rows, hidden], which is used up; `positions` [1, rows]. Rows beyond those
        of `layout` are nobody's."""
        cos, sin = (each[0].contiguous() for each in self._rotary(x, positions))
        if self._tiled is not None:
            return self._norm(self._tiled.run(x, cos, sin, layout), None)
        x = x.contiguous()
        added: torch.Tensor | None = None
        for number, layer in enumerate(self._layers):
            x, added = layer(x, added, number, cos, sin, layout)
        return self._norm(x, added)


class _Norm:
    def __init__(self, module: Any) -> None:
        self._weight = module.weight.detach().contiguous()
        self._eps = float(module.variance_epsilon)

    def __call__(self, x: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """The norm of x + added, to which x is set."""
        out = torch.empty_like(x)
        rows, width = x.shape
        native.rms_norm(
            x.data_ptr(),
            0 if added is None else added.data_ptr(),
            self._weight.data_ptr(),
            out.data_ptr(),
            rows,
            width,
            self._eps,
            x.dtype is torch.bfloat16,
        )
        return out


class _Layer:
    def __init__(self, layer: Any, make: type[PackedLinear] | type[PlainLinear]) -> None:
        attention = layer.self_attn
        self._before = _Norm(layer.input_layernorm)
        self._qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj], make)
        self._out = make(attention.o_proj.weight, attention.o_proj.bias)
        self._between = _Norm(layer.post_attention_layernorm)
        self._mlp = Gated(layer.mlp, make)
        self._head_dim = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._head_dim
        self._kv_heads = attention.k_proj.out_features // self._head_dim
        self._scaling = float(attention.scaling)

    def __call__(
        self,
        x: torch.Tensor,
        added: torch.Tensor | None,
        number: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        layout: StepLayout,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes and answers two tensors whose sum is the hidden states: who needs the sum makes it in passing."""
        qkv = self._qkv(self._before(x, added))
        keys, values = layout.arena.flat_keys[number], layout.arena.flat_values[number]
        rows, heads, kv_heads = len(qkv), self._heads, self._kv_heads
        native.rotate_and_place(
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            layout.slots.data_ptr(),
            rows,
            len(layout.slots),
            keys.shape[1],
            heads,
            kv_heads,
            self._head_dim,
            x.dtype is torch.bfloat16,
        )
        query, key, value = split_heads(qkv, heads, kv_heads)
        attended = attend(layout, number, query, key, value, self._scaling)
        normed = self._between(x, self._out(attended.view(rows, -1)))
        return x, self._mlp(normed)


def _is_norm(module: Any, dtype: torch.dtype) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(getattr(module, "variance_epsilon", None), float)
        and module.weight.dtype is dtype
    )


def _is_known(layer: Any, dtype: torch.dtype) -> bool:
    if {name for name, _ in layer.named_children()} != LAYER_PARTS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if {name for name, _ in attention.named_children()} != ATTENTION_PARTS:
        return False
    if {name for name, _ in mlp.named_children()} != MLP_PARTS or not is_silu(mlp):
        return False
    linears = [getattr(attention, name) for name in ATTENTION_PARTS] + [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if not all(type(linear) is nn.Linear and linear.weight.dtype is dtype for linear in linears):
        return False
    biased = {linear.bias is None for linear in (attention.q_proj, attention.k_proj, attention.v_proj)}
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return len(biased) == 1 and attention.head_dim % 2 == 0 and all(_is_norm(norm, dtype) for norm in norms)
