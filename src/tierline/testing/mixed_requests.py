"""Mixed requests over a checkpoint, and what Transformers' own processor and `generate` make of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as untyped

from tierline.core.request import Picture, Request, Sampling, ServedModel
from tierline.engine.families import image_layout_of
from tierline.engine.families.pictures import image_processor, to_pil
from tierline.engine.text import TransformersText
from tierline.testing.checkpoints import CONTEXT_TOKENS, VOCABULARY

transformers: Any = untyped
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ .,?!0123456789\n"


@dataclass(frozen=True, slots=True)
class Mixed:
    """A text with one placeholder for each of `pictures`. Any of `stops` ends the answer."""

    text: str
    pictures: tuple[Picture, ...]
    max_tokens: int
    stops: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What Transformers makes of a request: the prompt its processor built, the tokens of greedy `generate`, and the
    smallest distance of the two likeliest tokens over all of its steps."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    gap: float


def make_picture(rng: random.Random, width: int, height: int) -> Picture:
    """Stripes of noise."""
    rgb = (rng.randbytes(192) * (width * height // 64 + 1))[: 3 * width * height]
    return Picture(hashlib.sha256(f"{width}x{height}".encode() + rgb).hexdigest(), width, height, rgb)


def make_mixed(
    count: int, seed: int, placeholder: str = "", sizes: Sequence[tuple[int, int]] = (), longest: int = 600
) -> list[Mixed]:
    """Prompts of 1 to about `longest` tokens with shared beginnings; 0 to 4 images in three of four where there is a
    `placeholder`, some of them repeated; short and long answers, every third with tokens that stop it."""
    rng = random.Random(seed)
    pool = [make_picture(rng, *size) for size in sizes for _ in range(2)]
    openings = ["".join(rng.choices(LETTERS, k=size)) for size in (40, 130)]
    found: list[Mixed] = []
    for number in range(count):
        many = rng.choice((1, 1, 2, 3, 4)) if placeholder and number % 4 else 0
        pictures = tuple(
            rng.choice(pool) if rng.random() < 0.7 else make_picture(rng, *rng.choice(sizes)) for _ in range(many)
        )
        size = rng.choice((1, 2, 15, 16, 17, 60, 200, longest - 20)) if number % 3 else rng.randrange(1, 60)
        opening = rng.choice(openings) if number % 3 == 0 else ""
        text = "".join(rng.choices(LETTERS, k=size))
        if pictures and opening:  # the same picture behind the same words, and now and then another one
            pictures = (pool[rng.random() < 0.3], *pictures[1:])
        cuts = sorted(0 if opening or rng.random() < 0.5 else rng.randrange(len(text)) for _ in pictures)
        parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        text = opening + placeholder.join(parts)
        stops = tuple(rng.sample(range(256), 12)) if number % 3 == 1 else ()
        found.append(Mixed(text, pictures, rng.choice((1, 2, 5, 12, 24)), stops))
    return found


class Requests:
    """Turns mixed requests into requests for an instance, as the front door does."""

    def __init__(self, folder: str) -> None:
        config = transformers.AutoConfig.from_pretrained(folder)
        served = ServedModel(folder, CONTEXT_TOKENS, hasattr(config, "vision_config"), VOCABULARY, ())
        placeholder = getattr(config, "image_token_id", None)
        layout = image_layout_of(config, folder)
        self._text = TransformersText(folder, served, placeholder=placeholder, layout=layout)

    def make(self, request_id: str, mixed: Mixed, arrived_ns: int = 0) -> Request:
        tokens = self._text.encode(mixed.text, add_special_tokens=False)
        images = [(picture.content_hash, picture.width, picture.height) for picture in mixed.pictures]
        prompt, spans = self._text.place_images(tokens, images)
        sampling = Sampling(mixed.max_tokens, temperature=0.0, stop_token_ids=mixed.stops)
        return Request(request_id, prompt, sampling, spans, arrived_ns=arrived_ns)


class Reference:
    """The checkpoint as Transformers runs it, with its own attention and cache."""

    def __init__(self, folder: str) -> None:
        config = transformers.AutoConfig.from_pretrained(folder)
        self._takes_images = hasattr(config, "vision_config")
        auto = transformers.AutoModelForImageTextToText if self._takes_images else transformers.AutoModelForCausalLM
        self.model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = processor_of(folder) if self._takes_images else None
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def inputs(self, mixed: Mixed) -> Any:
        if not mixed.pictures:
            return self._tokenizer(
                mixed.text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False
            )
        assert self.processor is not None
        pictures = [to_pil(each) for each in mixed.pictures]
        return self.processor(images=pictures, text=[mixed.text], add_special_tokens=False, return_tensors="pt")

    @torch.inference_mode()
    def answer(self, mixed: Mixed) -> Answer:
        inputs = self.inputs(mixed)
        length = inputs["input_ids"].shape[1]
        ends = (*self._ends(), *mixed.stops)
        made = self.model.generate(
            **inputs,
            max_new_tokens=mixed.max_tokens,
            do_sample=False,
            eos_token_id=list(ends),
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert made.sequences.shape[1] <= CONTEXT_TOKENS
        best = torch.cat(made.logits).topk(2).values
        tokens = made.sequences[0].tolist()
        return Answer(tuple(tokens[:length]), tuple(tokens[length:]), float((best[:, 0] - best[:, 1]).min()))

    def _ends(self) -> tuple[int, ...]:
        ends = self.model.generation_config.eos_token_id
        return tuple(ends) if isinstance(ends, list) else (ends,)


def processor_of(folder: str) -> Any:
    """The checkpoint's processor, with pictures prepared by PIL. Those of Qwen2.5-VL and SmolVLM are opened without their
    part for videos, which needs torchvision."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.model_type not in ("qwen2_5_vl", "smolvlm"):
        processor = transformers.AutoProcessor.from_pretrained(folder)
        processor.image_processor = image_processor(folder)
        return processor
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if config.model_type == "smolvlm":
        vision = config.vision_config
        length = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
        return transformers.Idefics3Processor(image_processor(folder), tokenizer, image_seq_len=length)

    class WithoutVideos(transformers.Qwen2_5_VLProcessor):  # type: ignore[misc]
        def __init__(self, image_processor: Any, tokenizer: Any) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            transformers.ProcessorMixin.__init__(self, image_processor, tokenizer)

    return WithoutVideos(image_processor(folder), tokenizer)
