"""Training rows for tiny-vlm: many questions about one picture in one sequence, each blind to the others.

A row is a prefix (system prompt, picture) and blocks (a question and its answer). A token sees the prefix and its own block
up to itself, so one forward pass gives a dozen single-turn losses for one picture; some rows are plain conversations instead,
where later turns see earlier ones. Only answers and their end token are learned.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from tierline.workloads.scene_questions import Kind, Question, answerable, ask, ask_text
from tierline.workloads.scenes import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIDE_PX,
    TRAIN_SEEDS,
    Scene,
    draw,
    free_scene,
    grid_scene,
)

PATCH_PX = 14
SIDE_PATCHES = SIDE_PX // PATCH_PX
PATCHES = SIDE_PATCHES**2
MASK = 7  # parts of a patch's side
BLIND = -100  # a label that is not learned
SYSTEM = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You look at pictures.",
    "You answer questions about pictures.",
)
NO_PICTURE = "I see no picture."
# Questions about one picture in a row, by kind.
ASKED: dict[Kind, int] = {"caption": 1, "count": 2, "colour": 2, "shape": 2, "position": 2, "yes-no": 3}


@dataclass(frozen=True, slots=True)
class Row:
    tokens: list[int]
    labels: list[int]
    places: list[int]
    blocks: list[int]  # 0: the prefix, which all see
    chained: bool  # a conversation: later blocks see earlier ones
    pictures: tuple[Scene, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """What the tower should know of each patch, one row a picture."""

    classes: torch.Tensor  # (pictures, patches, 4): shape, colour, position, number of shapes in the picture
    boxes: torch.Tensor  # (pictures, patches, 4): the edges of the patch's shape, in patches from the patch's middle
    masks: torch.Tensor  # (pictures, patches, MASK²): how much of each part of the patch is covered by a shape


@dataclass(frozen=True, slots=True)
class Batch:
    tokens: torch.Tensor  # (rows, length)
    labels: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor  # (rows, 1, length, length), added to the scores: 0 where seen, else −∞, nearly
    pixels: torch.Tensor  # (pictures, 3, side, side)
    truth: Truth


class Rows:
    """Builds rows from seeds, with a cache of tokenized strings: wordings are few."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.cache: dict[str, list[int]] = {}
        self.image = self.encode("<image>") * PATCHES
        self.user, self.assistant, self.system, self.end = (
            self.encode(token) for token in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
        )

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) > 100_000:
                self.cache.clear()
            self.cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.cache[text]

    def row(self, prefix: list[int], parts: list[tuple[list[int], str]], chained: bool, *pictures: Scene) -> Row:
        row = Row(list(prefix), [BLIND] * len(prefix), list(range(len(prefix))), [0] * len(prefix), chained, pictures)
        for number, (question, text) in enumerate(parts, start=1):
            opening = question if number == 1 or not chained else self.user + question
            asked, answer = [*opening, *self.end, *self.assistant], [*self.encode(text), *self.end]
            start = len(row.tokens) if chained else len(prefix)
            row.tokens.extend((*asked, *answer))
            row.labels.extend((*[BLIND] * len(asked), *answer))
            row.places.extend(range(start, start + len(asked) + len(answer)))
            row.blocks.extend([number] * (len(asked) + len(answer)))
        return row

    def opening(self, rng: random.Random) -> list[int]:
        return [*self.system, *self.encode(rng.choice(SYSTEM)), *self.end] if rng.random() < 0.2 else []

    def picture_row(self, rng: random.Random, scene: Scene) -> Row:
        """A dozen questions about one picture, which is in the first turn."""
        questions = scene_questions(scene, rng)
        if rng.random() < 0.5:
            questions.append(ask_text(rng))
        chained = rng.random() < 0.2
        if chained:
            rng.shuffle(questions)
            questions = questions[: rng.randint(2, 7)]
        parts = [(self.encode(q.text), q.answer) for q in questions]
        return self.row(self.opening(rng) + self.user + self.image, parts, chained, scene)

    def text_first_row(self, rng: random.Random, scene: Scene) -> Row:
        """The picture behind the question: its tokens have seen the question, so each block has its own."""
        chosen = rng.sample(scene_questions(scene, rng), 3)
        parts = [(self.user + self.encode(q.text) + self.image, q.answer) for q in chosen]
        return self.row(self.opening(rng), parts, False, scene, scene, scene)

    def text_row(self, rng: random.Random, scene: Scene) -> Row:
        """Questions without a picture; one about a picture that is not there."""
        chained = rng.random() < 0.3
        questions = [ask_text(rng) for _ in range(rng.randint(2, 6) if chained else 13)]
        if not chained:
            lost = rng.choice(scene_questions(scene, rng))
            questions.append(Question("text", lost.text, NO_PICTURE))
        parts = [(self.encode(q.text) if chained else self.user + self.encode(q.text), q.answer) for q in questions]
        return self.row(self.opening(rng) + (self.user if chained else []), parts, chained)


def scene_questions(scene: Scene, rng: random.Random) -> list[Question]:
    return [ask(scene, rng, kind) for kind in answerable(scene) for _ in range(ASKED[kind])]


def training_scene(seed: int) -> Scene:
    """Half of them on the grid, half free; some of the free ones beyond the sizes of the exam, for margin."""
    if seed % 2:
        return grid_scene(seed)
    return free_scene(seed) if seed % 4 else free_scene(seed, least_px=17.0, most_px=80.0)


def pixels_of(scene: Scene, rng: random.Random) -> np.ndarray:
    """(3, side, side) in −1 to 1, as the image processor gives it; now and then behind a lossy JPEG."""
    image = draw(scene)
    if rng.random() < 0.15:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=rng.randint(70, 95))
        image = Image.open(packed)
    return (np.asarray(image, dtype=np.float32) / 127.5 - 1.0).transpose(2, 0, 1)


def truth_of(scenes: list[Scene]) -> Truth:
    classes, boxes = zip(*(_patches(scene) for scene in scenes), strict=True)
    masks = np.stack([_masks(scene) for scene in scenes])
    return Truth(torch.from_numpy(np.stack(classes)), torch.from_numpy(np.stack(boxes)), torch.from_numpy(masks))


def _patches(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Classes, one past the last for background, and boxes."""
    boxes = np.zeros((SIDE_PATCHES, SIDE_PATCHES, 4), dtype=np.float32)
    middles = np.arange(SIDE_PATCHES) + 0.5
    labels = np.empty((SIDE_PATCHES, SIDE_PATCHES, 4), dtype=np.int64)
    labels[..., 0], labels[..., 1], labels[..., 2] = len(SHAPES), len(COLOURS), len(POSITIONS)
    labels[..., 3] = len(scene.shapes) - 1
    for shape in scene.shapes:
        left, top, right, bottom = (edge / PATCH_PX for edge in shape.box)
        at = (slice(int(top + 0.35), int(bottom + 0.65)), slice(int(left + 0.35), int(right + 0.65)))
        labels[at][..., 0] = SHAPES.index(shape.kind)
        labels[at][..., 1] = tuple(COLOURS).index(shape.colour)
        labels[at][..., 2] = shape.cell if shape.clear else BLIND
        boxes[at][..., 0::2] = np.array((left, right)) - middles[None, at[1], None]
        boxes[at][..., 1::2] = np.array((top, bottom)) - middles[at[0], None, None]
    return labels.reshape(PATCHES, 4), boxes.reshape(PATCHES, 4)


def _masks(scene: Scene) -> np.ndarray:
    """The scene in white on black, each patch MASK × MASK."""
    shapes = tuple(replace(shape, rgb=(255, 255, 255), outline_px=0) for shape in scene.shapes)
    image = draw(replace(scene, background=(0, 0, 0), shapes=shapes)).convert("L")
    side = SIDE_PATCHES * MASK
    parts = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255.0
    parts = parts.reshape(SIDE_PATCHES, MASK, SIDE_PATCHES, MASK).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(parts).reshape(PATCHES, MASK * MASK)


def collate(rows: list[Row], rng: random.Random, pad: int) -> Batch:
    length = -(-max(len(row.tokens) for row in rows) // 32) * 32
    tokens = np.full((len(rows), length), pad, dtype=np.int64)
    labels = np.full((len(rows), length), BLIND, dtype=np.int64)
    places = np.zeros((len(rows), length), dtype=np.int64)
    blocks = np.full((len(rows), length), -1, dtype=np.int64)
    for index, row in enumerate(rows):
        size = len(row.tokens)
        tokens[index, :size], labels[index, :size], places[index, :size] = row.tokens, row.labels, row.places
        blocks[index, :size] = 0 if row.chained else row.blocks
    seen = (blocks[:, None, :] == blocks[:, :, None]) | (blocks[:, None, :] == 0)
    seen &= np.tri(length, dtype=bool)
    seen |= np.eye(length, dtype=bool)
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(torch.from_numpy(~seen), -1e4)
    scenes = [scene for row in rows for scene in row.pictures]
    pixels = np.stack([pixels_of(scene, rng) for scene in scenes])
    return Batch(
        *(torch.from_numpy(part) for part in (tokens, labels, places)),
        mask=mask[:, None],
        pixels=torch.from_numpy(pixels),
        truth=truth_of(scenes),
    )


class SceneBatches(IterableDataset):  # type: ignore[type-arg]
    """Batches from consecutive training seeds, made in a loader's worker."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rows: int, first_seed: int, batches: int) -> None:
        self.tokenizer, self.rows, self.first_seed, self.batches = tokenizer, rows, first_seed, batches

    def __iter__(self) -> Iterator[Batch]:
        rows, seed = Rows(self.tokenizer), self.first_seed
        for _ in range(self.batches):
            made = []
            for index in range(self.rows):
                seed += 1
                assert seed in TRAIN_SEEDS
                scene, rng = training_scene(seed), random.Random(f"row {seed}")
                share = index / self.rows
                build = rows.text_row if share < 0.09 else rows.text_first_row if share < 0.16 else rows.picture_row
                made.append(build(rng, scene))
            yield collate(made, random.Random(f"batch {seed}"), self.tokenizer.pad_token_id)


class PictureBatches(IterableDataset):  # type: ignore[type-arg]
    """Pixels and truth alone, for the vision tower's first minutes."""

    def __init__(self, pictures: int, first_seed: int, batches: int) -> None:
        self.pictures, self.first_seed, self.batches = pictures, first_seed, batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Truth]]:
        for batch in range(self.batches):
            start = self.first_seed + batch * self.pictures
            scenes = [training_scene(seed) for seed in range(start, start + self.pictures)]
            rng = random.Random(f"pictures {start}")
            pixels = np.stack([pixels_of(scene, rng) for scene in scenes])
            yield torch.from_numpy(pixels), truth_of(scenes)
