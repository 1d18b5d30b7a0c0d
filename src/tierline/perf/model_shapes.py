"""The shape of a model: what its matrices and its KV measure. From a checkpoint's config.json, or written down here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tierline.core.errors import InvalidInput, UnknownName
from tierline.perf.serving_profile import plain_name

BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class VisionShape:
    """An image encoder. `layers` are those that are computed, `full_layers` of them attend over the whole image, the others
    within windows of `window_patches` (0 = none has windows). `patch_inputs`: numbers of a patch. `merge`: patches that
    become one position of the language model, through a layer of `merger_hidden` (0 = without) and one to `out_hidden`."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    gated: bool
    patch_inputs: int
    merge: int
    merger_hidden: int
    out_hidden: int
    full_layers: int
    window_patches: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        mlp = (3 if self.gated else 2) * self.hidden * self.intermediate
        return (
            self.layers * (4 * self.hidden**2 + mlp)
            + self.patch_inputs * self.hidden
            + sum(outputs * inputs for outputs, inputs in self.merger)
        )

    @property
    def merger(self) -> tuple[tuple[int, int], ...]:
        """The layers that bring merged patches into the language model, as (outputs, inputs)."""
        merged = self.merge * self.hidden
        if not self.merger_hidden:
            return ((self.out_hidden, merged),)
        return ((self.merger_hidden, merged), (self.out_hidden, self.merger_hidden))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with grouped-query attention and a gated MLP. `tied`: the output layer is the embedding."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    vision: VisionShape | None = None

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one position in bf16, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BF16_BYTES

    @property
    def embedding_token_bytes(self) -> int:
        return self.hidden * BF16_BYTES

    @property
    def weights_bytes(self) -> int:
        """In bf16, without norms and biases (under 0.1 %)."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim * self.hidden
        layers = self.layers * (attention + 3 * self.hidden * self.intermediate)
        embedding = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return BF16_BYTES * (layers + embedding + (self.vision.parameters if self.vision else 0))


def _qwen2_5_vision(out_hidden: int) -> VisionShape:
    return VisionShape(32, 1280, 16, 3420, True, 1176, 4, 5120, out_hidden, full_layers=4, window_patches=64)


# Facts of the config.json that each publisher ships under this name on the Hugging Face hub.
SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("Qwen2.5-VL-7B", 28, 3584, 28, 4, 128, 18944, 152064, False, _qwen2_5_vision(3584)),
        ModelShape("Qwen2.5-VL-3B", 36, 2048, 16, 2, 128, 11008, 151936, True, _qwen2_5_vision(2048)),
        ModelShape("Qwen2.5-7B", 28, 3584, 28, 4, 128, 18944, 152064, False),
        ModelShape("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, False),
        ModelShape(
            "LLaVA-1.5-7B", 32, 4096, 32, 32, 128, 11008, 32064, False,
            # CLIP ViT-L/14 at 336 px: features of the layer before the last, so 23 of 24 layers are computed.
            VisionShape(23, 1024, 16, 4096, False, 588, 1, 4096, 4096, full_layers=23),
        ),
        ModelShape("SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152, True),
    )
}  # fmt: skip


def shape_named(name: str) -> ModelShape:
    """A shape of `SHAPES`, or that of a folder with a config.json. Raises `InvalidInput`."""
    short = plain_name(name)
    known = {plain_name(key): shape for key, shape in SHAPES.items()}
    if not Path(name).is_dir() and short in known:
        return known[short]
    path = Path(name) / "config.json"
    if path.is_file():
        try:
            return shape_of(path.parent.name, msgspec.json.decode(path.read_bytes()))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{path} describes no model of a known shape ({error!r}).") from error
    raise UnknownName("model", name, SHAPES)


def shape_of(name: str, config: Mapping[str, Any]) -> ModelShape:
    """The shape that a Transformers configuration describes. Raises `KeyError` where it lacks something."""
    text = {**config, **config.get("text_config", {})}
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    return ModelShape(
        name=name,
        layers=text["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        vision=_vision_of(config["vision_config"], config, hidden) if config.get("vision_config") else None,
    )


def patches_per_token(config: Mapping[str, Any]) -> int:
    """Patches of an image that become one position of the language model, by a Transformers configuration."""
    vision = config.get("vision_config") or {}
    if "depth" in vision:  # Qwen's towers
        return int(vision.get("spatial_merge_size", 2)) ** 2
    return int(config.get("scale_factor", 1)) ** 2  # SmolVLM folds scale x scale patches into one position


def _vision_of(vision: Mapping[str, Any], config: Mapping[str, Any], text_hidden: int) -> VisionShape:
    patch, channels = vision.get("patch_size", 14), vision.get("num_channels", vision.get("in_channels", 3))
    merge = patches_per_token(config)
    if "depth" in vision:  # Qwen's towers, with windows in the 2.5 generation
        window = (vision.get("window_size", 0) // patch) ** 2 if "fullatt_block_indexes" in vision else 0
        hidden = vision.get("hidden_size") if "out_hidden_size" in vision else vision.get("embed_dim")
        assert hidden, "a tower has a width"
        return VisionShape(
            layers=vision["depth"],
            hidden=hidden,
            heads=vision["num_heads"],
            intermediate=vision.get("intermediate_size") or int(hidden * vision.get("mlp_ratio", 4)),
            gated=window > 0,
            patch_inputs=channels * patch * patch * vision.get("temporal_patch_size", 2),
            merge=merge,
            merger_hidden=merge * hidden,
            out_hidden=vision.get("out_hidden_size", text_hidden),
            full_layers=len(vision["fullatt_block_indexes"]) if window else vision["depth"],
            window_patches=window,
        )
    layer = config.get("vision_feature_layer", -1)
    layers = vision["num_hidden_layers"] + (layer + 1 if layer < 0 else 0)
    return VisionShape(
        layers=layers,
        hidden=vision["hidden_size"],
        heads=vision["num_attention_heads"],
        intermediate=vision["intermediate_size"],
        gated=False,
        patch_inputs=channels * patch * patch,
        merge=merge,
        merger_hidden=text_hidden if merge == 1 else 0,
        out_hidden=text_hidden,
        full_layers=layers,
    )
