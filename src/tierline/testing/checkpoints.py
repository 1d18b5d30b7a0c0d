"""Small random checkpoints of every model family, in folders that Transformers' Auto classes open as they are.

The weights are large for their number, so greedy answers are well separated: what a wrong key, a wrong position or a wrong
image would change is the tokens, not the last digits of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as untyped
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

transformers: Any = untyped
CONTEXT_TOKENS = 1536
PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
VISION = ("<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TILES = (
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
SPECIAL = (PAD, END, *ROLES, *VISION, *TILES)
VOCABULARY = 320
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_TOKENS,
    "tie_word_embeddings": False,
    "bos_token_id": None,
}
WEIGHT_STD = 0.3
HEAD_STD = 1.0  # logits of about 8: the two likeliest are seldom near each other

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- IMAGE if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def make_tokenizer(image: str = "<image>") -> Any:
    """One token a byte and the special ones. `image`: what the chat template writes for a picture."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", f"'{image}'"),
    )


def _text(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**TEXT, **ends, **changes}


def _llama(folder: Path) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_text(tokenizer)))


def _qwen3(folder: Path) -> Any:
    """Norms of queries and keys, and heads that are wider than the hidden size has room for."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_text(tokenizer, head_dim=32)))


def _qwen2(folder: Path) -> Any:
    """Biases, and a head tied to the embeddings."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_text(tokenizer, tie_word_embeddings=True)))


def _llava(folder: Path, vision: Any, strategy: str) -> Any:
    tokenizer = make_tokenizer()
    side = {"height": vision.image_size, "width": vision.image_size}
    image_processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": vision.image_size}, crop_size=side, do_center_crop=True
    )
    processor = transformers.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2 if strategy == "default" else -1,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=False,
    )
    return transformers.LlavaForConditionalGeneration(config)


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _llava_clip(folder: Path) -> Any:
    """As LLaVA 1.5: the layer before the last, without the class token. 16 tokens an image."""
    return _llava(folder, transformers.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8), "default")


def _llava_siglip(folder: Path) -> Any:
    """As tiny-vlm: the last layer, all patches. 25 tokens an image."""
    vision = transformers.SiglipVisionConfig(**TOWER, image_size=40, patch_size=8, vision_use_head=False)
    return _llava(folder, vision, "full")


def _qwen2_5_vl(folder: Path) -> Any:
    """Images of 4 to 30 tokens, rotary positions with three axes, windows of 2 x 2 merged patches in the tower."""
    tokenizer = make_tokenizer("<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 4 * 64, "longest_edge": 30 * 64}
    ).save_pretrained(folder)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "out_hidden_size": TEXT["hidden_size"],
        "fullatt_block_indexes": [1],
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    number = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=_text(tokenizer, rope_parameters=rope),
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _tiled(folder: Path, name: str, splits: bool) -> Any:
    tokenizer = make_tokenizer()
    image_processor = getattr(transformers, f"{name}ImageProcessorPil")(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=splits
    )
    if name == "Idefics3":
        processor = transformers.Idefics3Processor(
            image_processor, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template
        )
        processor.save_pretrained(folder)
    else:  # its processor needs a processor for videos, and that torchvision
        tokenizer.save_pretrained(folder)
        image_processor.save_pretrained(folder)
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _smolvlm(folder: Path) -> Any:
    """Up to 2 x 2 tiles of 4 tokens, and 4 for the whole."""
    return _tiled(folder, "SmolVLM", splits=True)


def _idefics3(folder: Path) -> Any:
    """Images that are not cut."""
    return _tiled(folder, "Idefics3", splits=False)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`make(folder)` writes tokenizer and processor and answers the model; `placeholder` is what the chat template writes
    for an image ("" = it takes none); `sizes` of images worth trying."""

    make: Callable[[Path], Any]
    placeholder: str = ""
    sizes: tuple[tuple[int, int], ...] = ()


CHECKPOINTS: Mapping[str, Checkpoint] = {
    "llama": Checkpoint(_llama),
    "qwen2": Checkpoint(_qwen2),
    "qwen3": Checkpoint(_qwen3),
    "llava-clip": Checkpoint(_llava_clip, "<image>", ((40, 30), (32, 32), (100, 50))),
    "llava-siglip": Checkpoint(_llava_siglip, "<image>", ((40, 30), (32, 32), (100, 50))),
    "qwen2_5_vl": Checkpoint(
        _qwen2_5_vl, "<|vision_start|><|image_pad|><|vision_end|>", ((40, 30), (16, 16), (25, 90), (100, 7))
    ),
    "smolvlm": Checkpoint(_smolvlm, "<image>", ((40, 30), (64, 64), (25, 90), (100, 7))),
    "idefics3": Checkpoint(_idefics3, "<image>", ((40, 30), (64, 64))),
}
TINY_CHECKPOINT = Checkpoint(_llama, "<image>", ((96, 96), (40, 64)))  # tiny-vlm, which is not made here


def build(kind: str, folder: Path, seed: int = 0) -> str:
    """Write the checkpoint `kind` into `folder`, in single precision; the same bits for the same `seed`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = CHECKPOINTS[kind].make(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                std = HEAD_STD if name.endswith(("lm_head.weight", "embed_tokens.weight")) else WEIGHT_STD
                weight.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1, generator=generator)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=_id(model, "eos_token_id"), pad_token_id=_id(model, "pad_token_id"), do_sample=False
    )
    model.eval().save_pretrained(folder)
    return str(folder)


def _id(model: Any, name: str) -> int:
    return int(getattr(model.config.get_text_config(), name))
