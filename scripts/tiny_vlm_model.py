"""What tiny-vlm is made of: its tokenizer, its configuration, its chat template, and how its folder is written."""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from tiny_vlm_data import PATCH_PX, SYSTEM, scene_questions, training_scene
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.masking_utils import sdpa_mask

from tierline.workloads.scene_questions import ask_text
from tierline.workloads.scenes import SIDE_PX

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 1024
CONTEXT_TOKENS = 2048
PAD, END, IMAGE = "<|pad|>", "<|end|>", "<image>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>", IMAGE)

# One <image> a picture, in its place; other roles that OpenAI knows are read as the nearest of ours.
CHAT_TEMPLATE = """\
{%- set roles = {'system': 'system', 'developer': 'system', 'assistant': 'assistant'} -%}
{%- for message in messages -%}
{{- '<|' + roles.get(message['role'], 'user') + '|>' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- elif message['content'] -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url', 'input_image') -%}
{{- '<image>' -}}
{%- elif part['text'] is string -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def corpus() -> list[str]:
    """What the tokenizer learns from: questions, answers, and the licence as some ordinary English."""
    texts = [*SYSTEM, *(ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()]
    for seed in range(600):
        rng = random.Random(seed)
        for question in (*scene_questions(training_scene(seed), rng), *(ask_text(rng) for _ in range(8))):
            texts += [question.text, question.answer]
    return texts


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text goes in and comes back), every digit a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=CONTEXT_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    side = {"height": SIDE_PX, "width": SIDE_PX}
    image_processor = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """About 4.8 million parameters; heads of 64, which every attention kernel knows."""
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=SIDE_PX,
        patch_size=PATCH_PX,
        vision_use_head=False,
    )
    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        **tokens,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE_PX // PATCH_PX) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        **tokens,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.embeddings.position_embedding.weight.data.copy_(
        waves(SIDE_PX // PATCH_PX, vision.hidden_size)
    )
    return model


def waves(side: int, width: int) -> torch.Tensor:
    """(side², width) positions of a square as sines and cosines of row and column: neighbours look alike from the start."""
    at = torch.arange(side).float() * math.pi / side
    turns = at[:, None] * torch.linspace(0.5, side, width // 4)[None]
    line = torch.cat([turns.sin(), turns.cos()], dim=1)
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return 0.5 * torch.cat([rows, columns], dim=-1).flatten(0, 1)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Writes the folder that Transformers loads: bf16 weights, configurations, tokenizer, processor, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = LlavaForConditionalGeneration(model.config)
    exported.load_state_dict(model.state_dict())
    exported = exported.to(torch.bfloat16).eval()
    exported.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, do_sample=False
    )
    exported.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def lean_attention(model: LlavaForConditionalGeneration) -> None:
    """Trains with plain matrix products: at these sizes the CPU's fused backward takes several times as long."""
    AttentionInterface.register("lean", _lean)
    AttentionMaskInterface.register("lean", sdpa_mask)
    model.set_attn_implementation("lean")


def _lean(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """(rows, heads, length, width) in, (rows, length, heads, width) out; the mask, if any, is added."""
    rows, heads, length, width = query.shape
    group = heads // key.shape[1]
    queries = (query * scaling).reshape(rows, key.shape[1], group * length, width)
    scores = torch.matmul(queries, key.transpose(-1, -2))
    if attention_mask is not None:
        scores = (scores.view(rows, -1, length, key.shape[2]) + attention_mask).view(scores.shape)
    found = torch.matmul(functional.softmax(scores, dim=-1), value)
    return found.view(rows, heads, length, width).transpose(1, 2).contiguous(), None
