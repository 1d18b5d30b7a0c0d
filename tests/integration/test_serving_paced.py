"""Paced instances as real processes: the tokens are those of Transformers, and nothing is faster than what is played."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("zmq")

from tierline.core.request import Sampling
from tierline.perf.serving_profile import (
    Linear,
    Memory,
    Preparation,
    Transfer,
    save_profile,
)
from tierline.testing.checkpoints import CHECKPOINTS, build
from tierline.testing.profiles import MADE_UP
from tierline.testing.serving_processes import Deployment, Questions, cpu_ticks, deployed

KIND = "llava-clip"
ITERATION_S, IMAGE_S = 0.02, 0.03
PROFILE = replace(
    MADE_UP,
    memory=Memory(1000, 4096, 1000, 100),
    transfer=Transfer(0.01, 1e7),
    linear=Linear(ITERATION_S, 1e-5, 0.0, 10, 0.0, 0.0, 0.0, encode_s=IMAGE_S, patch_s=1e-9),
)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    checkpoint = CHECKPOINTS[KIND]
    return Questions.make(build(KIND, tmp_path_factory.mktemp(KIND)), 12, checkpoint.placeholder, checkpoint.sizes)


def test_nothing_is_faster_than_what_is_played(questions: Questions, tmp_path: Path) -> None:
    save_profile(PROFILE, tmp_path / "paper.toml")
    with deployed(questions.folder, "EP,D", pace=str(tmp_path / "paper.toml"), pace_positions=2) as deployment:
        begun = time.monotonic()
        ticks = {slot: cpu_ticks(deployment.pid(slot)) for slot in deployment.slots}
        answers = deployment.run(questions)
        taken = time.monotonic() - begun
        assert answers.errors == {} and answers.wrong(questions) == []
        deployment.wait_idle()
        slots = deployment.slots
        moved = deployment.generator.status()["counts"]["moves"]
        encoded = slots["i0"]["encoded_images"]
        longest = max(len(tokens) for tokens in answers.tokens.values())
        # The longest answer alone: its prompt, a move, and an iteration for each token more; and each device by itself.
        assert taken >= ITERATION_S * longest + 0.01
        assert taken >= ITERATION_S * max(each["steps"] - 1 for each in slots.values())
        assert taken >= IMAGE_S * encoded and taken >= 0.01 * moved
        assert encoded >= 5 and moved >= 5 and slots["i1"]["steps"] >= longest - 1
        # Waiting costs nothing: an instance that span would have used all of the time that it was not computing.
        used = sum(cpu_ticks(deployment.pid(slot)) - before for slot, before in ticks.items()) / 100
        assert used < 0.8 * taken * len(slots)


def test_images_stand_in_the_way_of_text_where_the_policy_says_so(questions: Questions, tmp_path: Path) -> None:
    """An image takes two seconds, an iteration ten milliseconds. While it is encoded and prepared, the text request that
    decodes gets no token but for those that were under way."""
    linear = Linear(0.01, 1e-5, 0.0, 10, 0.0, 0.0, 0.0, encode_s=1.0, patch_s=1e-9)
    slow = replace(PROFILE, linear=linear, preparation=Preparation(1.0, 0.0))
    save_profile(slow, tmp_path / "slow.toml")
    image = next(each for each in questions.requests if len(each.images) == 1)
    text = next(each for each in questions.requests if not each.images)
    text = structs.replace(text, sampling=Sampling(400, temperature=0.0, ignore_eos=True))
    pictures = {each.content_hash: questions.pictures[each.content_hash] for each in image.images}
    told: list[str] = []

    async def ask(deployment: Deployment) -> None:
        async def looked_at() -> None:
            async for made in deployment.generator.generate(image, pictures):
                told.extend("image" for _ in made.tokens)

        asking = None
        async for made in deployment.generator.generate(text, {}):
            told.extend("text" for _ in made.tokens)
            if len(told) >= 20 and asking is None:
                told.append("asked")
                asking = asyncio.create_task(looked_at())
            if asking is not None and asking.done():
                break
        assert asking is not None
        await asking

    with deployed(questions.folder, "", policy="coupled-2024", instances=1, pace=str(tmp_path / "slow.toml")) as found:
        asyncio.run(ask(found))
        assert found.total("encoded_images") == 1
    between = told[told.index("asked") + 1 : told.index("image")]
    assert len(between) < 20, "two hundred iterations fit into that time"
