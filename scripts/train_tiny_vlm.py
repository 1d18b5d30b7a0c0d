"""Trains tiny-vlm, the embedded default model of the serving tier, from seeds alone, and writes its folder.

Three stages, all on scenes of `TRAIN_SEEDS`:

- tower: the vision tower alone learns what lies in each patch (shape, colour, position, number of shapes in the picture).
  Dense supervision, so minutes suffice.
- language: the language model alone learns to answer, from pictures whose patches are told to it.
- joint: the tower's features take the place of the told ones (a linear fit gives the projector its start), and all learns
  to answer, with the tower's own loss kept at a small weight.

Repeat with:

    python scripts/train_tiny_vlm.py --state /tmp/tiny-vlm

Finished stages are kept in the state folder and not repeated; the joint stage goes on where it was interrupted. The first two
are independent: two processes can do them at the same time (`--only tower`, `--only language`).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_vlm_data import BLIND, PATCHES, Batch, PictureBatches, SceneBatches
from tiny_vlm_model import ROOT, lean_attention, make_model, make_processor, make_tokenizer, save
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tierline.workloads.scenes import COLOURS, POSITIONS, SHAPES

FOLDER = ROOT / "src" / "tierline" / "engine" / "tiny_vlm"
PATCH_CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, len(POSITIONS) + 1, 4)
PATCH_WEIGHT = 0.1  # of the tower's loss in the joint stage
SAY_EVERY = 25
LANGUAGE_SEEDS, JOINT_SEEDS = 2**31, 2**32  # where the later stages' seeds start; the tower's start at 0


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    steps: int
    rate: float  # the peak
    first_seed: int


class PatchHead(nn.Module):
    """Reads a patch's classes from the tower's last hidden state; only training needs it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(PATCH_CLASSES) + 4)

    def forward(
        self, hidden: torch.Tensor, patches: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The summed loss; the share of right patches for each class and the mean error of the edges, in patches."""
        *logits, edges = self.linear(self.norm(hidden)).float().split((*PATCH_CLASSES, 4), dim=-1)
        loss = sum(
            functional.cross_entropy(part.flatten(0, 1), patches[..., i].flatten()) for i, part in enumerate(logits)
        )
        error = (edges - boxes)[patches[..., 0] < len(SHAPES)].abs().mean()
        told = {
            name: float((part.argmax(-1) == patches[..., i])[patches[..., i] != BLIND].float().mean())
            for i, (name, part) in enumerate(zip(("shape", "colour", "place", "count"), logits, strict=True))
        }
        return loss + error, {**told, "edges": error.item()}


def optimizer_of(*modules: nn.Module, lr: float) -> torch.optim.AdamW:
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Warm-up over 60 steps, then a cosine to nothing."""
    rate = peak * min(1.0, (step + 1) / 60) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate


def train_tower(model: LlavaForConditionalGeneration, head: PatchHead, steps: int, pictures: int, peak: float) -> None:
    tower = model.model.vision_tower
    optimizer, begun = optimizer_of(tower, head, lr=peak), time.perf_counter()
    loader = DataLoader(PictureBatches(pictures, 0, steps), batch_size=None, num_workers=1, prefetch_factor=4)
    for step, (pixels, patches, boxes) in enumerate(loader):
        set_rate(optimizer, peak, step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = tower(pixels, output_hidden_states=True).hidden_states[-1]
            loss, found = head(hidden, patches, boxes)
        advance(optimizer, loss, tower, head)
        if step % SAY_EVERY == 0 or step == steps - 1:
            shares = " ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"tower {step:5d}/{steps} {time.perf_counter() - begun:6.0f} s  {shares}", flush=True)


class Oracle(nn.Module):
    """Tells the language model what lies in each patch, in place of the tower; only training needs it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.ModuleList(nn.Embedding(classes, width) for classes in PATCH_CLASSES)
        self.place = nn.Embedding(PATCHES, width)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(pictures, patches, width) of labels (pictures, patches, 4); a label that is not learned reads as background."""
        told = self.place.weight[None]
        for classes, at in zip(self.classes, patches.unbind(-1), strict=True):
            told = told + classes(at.where(at >= 0, classes.num_embeddings - 1))
        return told


def answer_loss(
    model: LlavaForConditionalGeneration, batch: Batch, oracle: Oracle | None = None, head: PatchHead | None = None
) -> tuple[torch.Tensor, float, float]:
    """Loss, with the head's if there is one; its part for answers; the share of answer tokens foretold."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if oracle:
            features = list(model.model.multi_modal_projector(oracle(batch.patches)))
            image = BaseModelOutputWithPooling(pooler_output=features)
        else:
            image = model.model.get_image_features(batch.pixels, return_dict=True)
        found = model.model(
            input_ids=batch.tokens,
            mm_encoder_outputs={"image": image},
            attention_mask=batch.mask,
            position_ids=batch.places,
            use_cache=False,
        )
        wanted = batch.labels[:, 1:]
        logits = model.lm_head(found.last_hidden_state[:, :-1][wanted != BLIND]).float()
        loss = answers = functional.cross_entropy(logits, wanted[wanted != BLIND])
        if head:
            loss = answers + PATCH_WEIGHT * head(image.hidden_states[-1], batch.patches, batch.boxes)[0]
    right = float((logits.argmax(-1) == wanted[wanted != BLIND]).float().mean())
    return loss, answers.item(), right


def advance(optimizer: torch.optim.Optimizer, loss: torch.Tensor, *modules: nn.Module) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], 1.0)
    optimizer.step()


def train_answers(
    given: argparse.Namespace,
    stage: Stage,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    oracle: Oracle | None = None,
    head: PatchHead | None = None,
    start: int = 0,
    keep: Callable[[int, torch.optim.Optimizer], None] = lambda step, optimizer: None,
    optimizer_state: dict[str, object] | None = None,
) -> None:
    modules = [module for module in (model, oracle, head) if module]
    optimizer = optimizer_of(*modules, lr=stage.rate)
    if optimizer_state:
        optimizer.load_state_dict(optimizer_state)
    batches = SceneBatches(tokenizer, given.rows, stage.first_seed + start * given.rows, stage.steps - start)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)
    begun = time.perf_counter()
    for step, batch in enumerate(loader, start=start):
        set_rate(optimizer, stage.rate, step, stage.steps)
        loss, answers, right = answer_loss(model, batch, oracle, head)
        advance(optimizer, loss, *modules)
        if step % SAY_EVERY == 0:
            told = f"{stage.name} {step:5d}/{stage.steps} {time.perf_counter() - begun:6.0f} s"
            print(f"{told}  answers {answers:.4f}  tokens right {right:.4f}", flush=True)
        if (step + 1) % given.save_every == 0 or step + 1 == stage.steps:
            keep(step + 1, optimizer)


@torch.no_grad()
def align(model: LlavaForConditionalGeneration, oracle: Oracle) -> None:
    """Puts before the projector the linear map that best turns the tower's features into the told ones."""
    pixels, patches, _ = next(iter(PictureBatches(512, JOINT_SEEDS - 512, 1)))
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1].flatten(0, 1)
    hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1)
    told = oracle(patches).flatten(0, 1)
    ridge = 1e-3 * len(hidden) * torch.eye(hidden.shape[1])
    fit = torch.linalg.solve(hidden.T @ hidden + ridge, hidden.T @ told)
    left = ((hidden @ fit - told) ** 2).mean() / told.var()
    print(f"align: {100 * (1 - left):.1f} % of the told features' variance", flush=True)
    linear = model.model.multi_modal_projector.linear_1
    linear.bias += linear.weight @ fit[-1]
    linear.weight.copy_(linear.weight @ fit[:-1].T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model is written")
    parser.add_argument("--state", type=Path, required=True, help="folder of what is kept between stages and runs")
    parser.add_argument("--only", choices=("tower", "language", "joint"), help="default: all that is not finished")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tower-steps", type=int, default=1000)
    parser.add_argument("--tower-pictures", type=int, default=64, help="pictures in a batch of the tower's stage")
    parser.add_argument("--tower-rate", type=float, default=1.5e-3)
    parser.add_argument("--language-steps", type=int, default=1200)
    parser.add_argument("--language-rate", type=float, default=1.5e-3)
    parser.add_argument("--joint-steps", type=int, default=2500)
    parser.add_argument("--joint-rate", type=float, default=1.0e-3)
    parser.add_argument(
        "--rows", type=int, default=32, help="rows in a batch of the later stages, a dozen answers each"
    )
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--compile", action="store_true", help="through torch.compile: faster, but needs a compiler")
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    given.state.mkdir(parents=True, exist_ok=True)
    tower_at, language_at, joint_at = (given.state / f"{stage}.pt" for stage in ("tower", "language", "joint"))
    tokenizer = make_tokenizer()
    torch.manual_seed(given.seed)
    model = make_model(tokenizer)
    lean_attention(model)
    width = model.config.vision_config.hidden_size
    head, oracle = PatchHead(width), Oracle(width)
    wanted = (given.only,) if given.only else ("tower", "language", "joint")

    if "tower" in wanted and not tower_at.exists():
        train_tower(model, head, given.tower_steps, given.tower_pictures, given.tower_rate)
        torch.save({"tower": model.model.vision_tower.state_dict(), "head": head.state_dict()}, tower_at)
    if given.compile:
        model.model.language_model.compile(dynamic=True)
        model.model.vision_tower.encoder.compile(dynamic=True)
    if "language" in wanted and not language_at.exists():
        stage = Stage("language", given.language_steps, given.language_rate, LANGUAGE_SEEDS)

        def keep_language(step: int, optimizer: torch.optim.Optimizer) -> None:
            kept = {k: v for k, v in model.state_dict().items() if "vision_tower" not in k}
            torch.save({"model": kept, "oracle": oracle.state_dict()}, language_at.with_suffix(".part"))

        train_answers(given, stage, model, tokenizer, oracle=oracle, keep=keep_language)
        language_at.with_suffix(".part").rename(language_at)
    if "joint" not in wanted:
        return
    start, optimizer_state = 0, None
    if joint_at.exists():
        saved = torch.load(joint_at)
        model.load_state_dict(saved["model"])
        head.load_state_dict(saved["head"])
        start, optimizer_state = saved["step"], saved["optimizer"]
    else:
        saved = torch.load(language_at)
        model.load_state_dict(saved["model"], strict=False)
        oracle.load_state_dict(saved["oracle"])
        saved = torch.load(tower_at)
        model.model.vision_tower.load_state_dict(saved["tower"])
        head.load_state_dict(saved["head"])
        align(model, oracle)

    def keep_joint(step: int, optimizer: torch.optim.Optimizer) -> None:
        kept = {
            "model": model.state_dict(),
            "head": head.state_dict(),
            "step": step,
            "optimizer": optimizer.state_dict(),
        }
        torch.save(kept, joint_at)
        save(model, make_processor(tokenizer), given.folder)

    stage = Stage("joint", given.joint_steps, given.joint_rate, JOINT_SEEDS)
    train_answers(
        given, stage, model, tokenizer, head=head, start=start, keep=keep_joint, optimizer_state=optimizer_state
    )


if __name__ == "__main__":
    main()
