"""How often tiny-vlm answers exactly right, by kind of question, on scenes that it was never trained on.

Greedy answers through Transformers' own generate; seeds from `HELD_OUT_SEEDS`. Three sets: scenes on the grid, freely drawn
scenes (20 to 60 px, anywhere), and questions without a picture. Repeat with:

    python benchmarks/tiny_vlm_accuracy.py --json FILE
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tierline.workloads.scene_questions import SCENE_KINDS, Kind, Question, answerable, ask, ask_text
from tierline.workloads.scenes import HELD_OUT_SEEDS, draw, free_scene, grid_scene

FOLDER = Path(__file__).resolve().parent.parent / "src" / "tierline" / "engine" / "tiny_vlm"
LONGEST_TOKENS = 80
Set = Literal["grid", "free", "text"]
SETS: tuple[Set, ...] = ("grid", "free", "text")


@dataclass(frozen=True, slots=True)
class Asked:
    question: Question
    picture: Image.Image | None
    seed: int


class Examinee:
    """The model behind its chat template, one user message a question."""

    def __init__(self, folder: Path, dtype: str = "auto") -> None:
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    def answers(self, asked: Sequence[tuple[str, Image.Image | None]], batch: int = 64) -> list[str]:
        """Greedy answers to questions, all of them with a picture or all without."""
        found: list[str] = []
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            prompts = [self.prompt(text, picture is not None) for text, picture in part]
            pictures = [picture for _, picture in part if picture is not None] or None
            inputs = self.processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
            inputs = inputs.to(self.model.dtype)
            with torch.inference_mode():
                tokens = self.model.generate(**inputs, max_new_tokens=LONGEST_TOKENS, do_sample=False)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            found += self.processor.batch_decode(new, skip_special_tokens=True)
        return found

    def prompt(self, text: str, pictured: bool) -> str:
        parts = [{"type": "image"}] * pictured + [{"type": "text", "text": text}]
        rendered = self.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        return str(rendered)


def exam(which: Set, kind: Kind, count: int, first: int = 0) -> list[Asked]:
    """`count` questions of a kind, each about its own held-out scene."""
    found: list[Asked] = []
    for seed in HELD_OUT_SEEDS[first:]:
        if len(found) == count:
            break
        rng = random.Random(f"exam {which} {kind} {seed}")
        if which == "text":
            found.append(Asked(ask_text(rng), None, seed))
            continue
        scene = grid_scene(seed) if which == "grid" else free_scene(seed)
        if kind in answerable(scene):
            found.append(Asked(ask(scene, rng, kind), draw(scene), seed))
    return found


def kinds_of(which: Set) -> tuple[Kind, ...]:
    return ("text",) if which == "text" else SCENE_KINDS


def measure(examinee: Examinee, count: int, first: int = 0) -> Iterator[tuple[Set, Kind, int, list[tuple[Asked, str]]]]:
    """Set, kind, number of right answers, and the wrong ones with what was answered."""
    for which in SETS:
        for kind in kinds_of(which):
            asked = exam(which, kind, count, first)
            answers = examinee.answers([(a.question.text, a.picture) for a in asked])
            wrong = [(a, answer) for a, answer in zip(asked, answers, strict=True) if answer != a.question.answer]
            yield which, kind, len(asked) - len(wrong), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--count", type=int, default=1000, help="questions of each kind")
    parser.add_argument("--dtype", default="auto", help="of the weights in memory: auto (as stored), float32, bfloat16")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers of each kind")
    parser.add_argument("--json", default="", metavar="FILE|-")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    examinee, begun = Examinee(given.folder, given.dtype), time.perf_counter()
    rows = []
    print(
        f"{'set':6} {'kind':10} {'right':>6} {'of':>6} {'share':>8}",
        file=sys.stderr if given.json == "-" else sys.stdout,
    )
    for which, kind, right, wrong in measure(examinee, given.count):
        rows.append({"set": which, "kind": kind, "right": right, "of": given.count, "share": right / given.count})
        line = f"{which:6} {kind:10} {right:6d} {given.count:6d} {100 * right / given.count:6.1f} %"
        print(line, file=sys.stderr if given.json == "-" else sys.stdout, flush=True)
        for asked, answer in wrong[: given.wrong]:
            print(f"    seed {asked.seed}: {asked.question.text!r} → {answer!r}, not {asked.question.answer!r}")
    parameters = sum(parameter.numel() for parameter in examinee.model.parameters())
    record = {
        "parameters": parameters,
        "dtype": given.dtype,
        "seconds": round(time.perf_counter() - begun, 1),
        "rows": rows,
    }
    if given.json:
        text = json.dumps(record, indent=1) + "\n"
        if given.json == "-":
            sys.stdout.write(text)
        else:
            Path(given.json).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
