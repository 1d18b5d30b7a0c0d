"""Trains tiny-vlm, the embedded default model of the serving tier, from seeds alone, and writes its folder.

Two stages, both on scenes of `TRAIN_SEEDS`:

- tower: the vision tower alone learns what lies in each patch: how much of it is covered, by which shape of which colour,
  where that shape's edges are, and how many shapes there are. Dense supervision, so minutes suffice.
- joint: all of it learns to answer, with the tower's own loss kept at a smaller weight.

Repeat with:

    python scripts/train_tiny_vlm.py --state /tmp/tiny-vlm

A joint step takes about half a second on two cores. The state folder keeps the finished tower, and what the joint stage needs
to go on where it was interrupted; with `--begin` another joint run starts from the weights of an earlier one, on scenes of
its own (`--joint-seeds`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_vlm_data import BLIND, MASK, Batch, PictureBatches, SceneBatches, Truth
from tiny_vlm_model import ROOT, lean_attention, make_model, make_processor, make_tokenizer, save
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tierline.workloads.scenes import COLOURS, POSITIONS, SHAPES

FOLDER = ROOT / "src" / "tierline" / "engine" / "tiny_vlm"
PATCH_CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, len(POSITIONS) + 1, 4)
PATCH_WEIGHT = 0.25  # of the tower's loss in the joint stage
SAY_EVERY = 25
JOINT_SEEDS = 2**32  # where the joint stage's seeds start; the tower's start at 0


class PatchHead(nn.Module):
    """Reads the truth of each patch from the tower; only training needs it.

    The masks are read from its middle, so that form is parted from colour early; the rest is read from its end.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, MASK * MASK))
        self.rest = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(PATCH_CLASSES) + 4))

    def forward(self, hidden: Sequence[torch.Tensor], truth: Truth) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss; over the shapes' patches, the share of right ones for each class, the mean errors of edges and masks."""
        *logits, edges = self.rest(hidden[-1]).float().split((*PATCH_CLASSES, 4), dim=-1)
        masks = self.mask(hidden[len(hidden) // 2]).float()
        loss = 2.0 * functional.binary_cross_entropy_with_logits(masks, truth.masks)
        inside = truth.classes[..., 0] < len(SHAPES)
        told = {"masks": (masks.sigmoid() - truth.masks).abs().mean().item()}
        for index, name in enumerate(("shape", "colour", "place", "count")):
            known = truth.classes[..., index]
            judged = inside & (known != BLIND)
            loss = loss + functional.cross_entropy(logits[index].flatten(0, 1), known.flatten())
            told[name] = float((logits[index].argmax(-1) == known)[judged].float().mean())
        error = (edges - truth.boxes)[inside].abs().mean()
        return loss + error, {**told, "edges": error.item()}


class Optimizers:
    """Muon for the matrices of the layers, AdamW for the rest (embeddings, norms, heads)."""

    def __init__(self, *modules: nn.Module, peak: float, steps: int) -> None:
        named = {name: p for module in modules for name, p in module.named_parameters(str(id(module)))}
        matrices = [p for name, p in named.items() if p.ndim == 2 and ".layers." in name]
        taken = {id(p) for p in matrices}
        rest = list({id(p): p for p in named.values() if id(p) not in taken}.values())
        self.peak, self.steps = peak, steps
        self.parameters = [*matrices, *rest]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        )

    def advance(self, loss: torch.Tensor, step: int) -> None:
        """One step, at a rate that warms up over 60 steps, stays, and falls to nothing over the last half."""
        rate = self.peak * min(1.0, (step + 1) / 60, 2.0 * (1.0 - step / self.steps))
        for part in self.parts:
            part.zero_grad()
            for group in part.param_groups:
                group["lr"] = rate
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            part.step()

    def state(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def restore(self, state: list[dict[str, object]]) -> None:
        for part, saved in zip(self.parts, state, strict=True):
            part.load_state_dict(saved)


def train_tower(model: LlavaForConditionalGeneration, head: PatchHead, steps: int, pictures: int, peak: float) -> None:
    tower = model.model.vision_tower
    optimizers, begun = Optimizers(tower, head, peak=peak, steps=steps), time.perf_counter()
    loader = DataLoader(PictureBatches(pictures, 0, steps), batch_size=None, num_workers=1, prefetch_factor=4)
    for step, (pixels, truth) in enumerate(loader):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = tower(pixels, output_hidden_states=True).hidden_states
            loss, found = head(hidden, truth)
        optimizers.advance(loss, step)
        if step % SAY_EVERY == 0 or step == steps - 1:
            shares = " ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"tower {step:5d}/{steps} {time.perf_counter() - begun:6.0f} s  {shares}", flush=True)


def answer_loss(
    model: LlavaForConditionalGeneration, head: PatchHead, batch: Batch
) -> tuple[torch.Tensor, float, float]:
    """Loss, with the head's; its part for answers; the share of answer tokens foretold."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # As the model's `get_image_features` does it, but that keeps the hidden states of one layer alone.
        hidden = model.model.vision_tower(batch.pixels, output_hidden_states=True).hidden_states
        features = list(model.model.multi_modal_projector(hidden[-1]))
        found = model.model(
            input_ids=batch.tokens,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            attention_mask=batch.mask,
            position_ids=batch.places,
            use_cache=False,
        )
        wanted = batch.labels[:, 1:]
        logits = model.lm_head(found.last_hidden_state[:, :-1][wanted != BLIND]).float()
        answers = functional.cross_entropy(logits, wanted[wanted != BLIND])
        patches, _ = head(hidden, batch.truth)
    right = float((logits.argmax(-1) == wanted[wanted != BLIND]).float().mean())
    return answers + PATCH_WEIGHT * patches, answers.item(), right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model is written")
    parser.add_argument("--state", type=Path, required=True, help="folder of what is kept between stages and runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tower-steps", type=int, default=3000)
    parser.add_argument("--tower-pictures", type=int, default=16, help="pictures in a batch of the tower's stage")
    parser.add_argument("--joint-steps", type=int, default=4000)
    parser.add_argument(
        "--joint-rows", type=int, default=12, help="rows in a batch of the joint stage, a dozen answers each"
    )
    parser.add_argument("--rate", type=float, default=1.5e-3, help="the peak")
    parser.add_argument("--begin", type=Path, help="an earlier run's joint.pt, whose weights this run goes on with")
    parser.add_argument("--joint-seeds", type=int, default=JOINT_SEEDS, help="where the joint stage's seeds start")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="faster, but needs a compiler")
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    given.state.mkdir(parents=True, exist_ok=True)
    tower_at, joint_at = given.state / "tower.pt", given.state / "joint.pt"
    tokenizer = make_tokenizer()
    processor = make_processor(tokenizer)
    model = make_model(tokenizer)
    lean_attention(model)
    head = PatchHead(model.config.vision_config.hidden_size)
    saved = torch.load(joint_at) if joint_at.exists() else None
    if saved:
        model.load_state_dict(saved["model"])
        head.load_state_dict(saved["head"])
    elif given.begin:
        begun_with = torch.load(given.begin)
        model.load_state_dict(begun_with["model"])
        head.load_state_dict(begun_with["head"])
    elif tower_at.exists():
        tower = torch.load(tower_at)
        model.model.vision_tower.load_state_dict(tower["tower"])
        head.load_state_dict(tower["head"])
    else:
        train_tower(model, head, given.tower_steps, given.tower_pictures, given.rate)
        torch.save({"tower": model.model.vision_tower.state_dict(), "head": head.state_dict()}, tower_at)
    if given.compile:
        model.model.language_model.compile(dynamic=True)

    optimizers = Optimizers(model, head, peak=given.rate, steps=given.joint_steps)
    if saved:
        optimizers.restore(saved["optimizers"])
    start = saved["step"] if saved else 0
    batches = SceneBatches(
        tokenizer, given.joint_rows, given.joint_seeds + start * given.joint_rows, given.joint_steps - start
    )
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)
    begun = time.perf_counter()
    for step, batch in enumerate(loader, start=start):
        loss, answers, right = answer_loss(model, head, batch)
        optimizers.advance(loss, step)
        if step % SAY_EVERY == 0:
            told = f"joint {step:5d}/{given.joint_steps} {time.perf_counter() - begun:6.0f} s"
            print(f"{told}  answers {answers:.4f}  tokens right {right:.4f}", flush=True)
        if (step + 1) % given.save_every == 0 or step + 1 == given.joint_steps:
            save(model, processor, given.folder)
            kept = {
                "model": model.state_dict(),
                "head": head.state_dict(),
                "optimizers": optimizers.state(),
                "step": step + 1,
            }
            torch.save(kept, joint_at)


if __name__ == "__main__":
    main()
