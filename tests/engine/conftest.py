"""Small checkpoints, what Transformers answers with them, and models for the instances; made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

if TYPE_CHECKING:
    from tierline.core.request import Picture, Request
    from tierline.engine.families.text import TextFamily
    from tierline.testing.mixed_requests import Answer

COUNT = 58
LEAST_GAP = 1e-3
INSTANCES = 6


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint with its requests, Transformers' answers to them, and a model for each instance."""

    folder: str
    requests: list[Request]
    pictures: dict[str, Picture]
    answers: dict[str, Answer]
    families: list[TextFamily]

    def again(self, suffix: str) -> tuple[list[Request], dict[str, tuple[int, ...]]]:
        """The same requests under other names, and the tokens they should get."""
        requests = [structs.replace(each, request_id=each.request_id + suffix) for each in self.requests]
        return requests, {f"{name}{suffix}": answer.tokens for name, answer in self.answers.items()}


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """`case("llama")`. Transformers' own progress bars and warnings are switched off here, for all tests of the engine."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)

    from tierline.engine.model import TINY_VLM, load
    from tierline.testing.checkpoints import CHECKPOINTS, TINY_CHECKPOINT, build
    from tierline.testing.mixed_requests import Reference, Requests, make_mixed

    @cache
    def make(kind: str) -> Case:
        if kind == "tiny-vlm":
            if not (Path(TINY_VLM) / "config.json").is_file():
                pytest.skip("tiny-vlm is not built: its folder holds no config.json")
            folder, checkpoint = str(TINY_VLM), TINY_CHECKPOINT
        else:
            folder, checkpoint = build(kind, tmp_path_factory.mktemp(kind)), CHECKPOINTS[kind]
        maker, reference = Requests(folder), Reference(folder)
        requests, answers, pictures = [], {}, {}
        for number, mixed in enumerate(make_mixed(COUNT, 1, checkpoint.placeholder, checkpoint.sizes)):
            answer = reference.answer(mixed)
            if answer.gap <= LEAST_GAP:
                continue  # whoever adds in another order may rightly answer something else
            requests.append(maker.make(f"r{number}", mixed, arrived_ns=number))
            answers[f"r{number}"] = answer
            pictures.update({picture.content_hash: picture for picture in mixed.pictures})
        families = [load(folder, torch.float32, torch.device("cpu")) for _ in range(INSTANCES)]
        return Case(folder, requests, pictures, answers, families)

    return make
