"""What the families make of images: the tokens, embeddings and positions of Transformers' own processors and models."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tierline.core.errors import InvalidInput  # noqa: E402
from tierline.core.request import ImageSpan, Request, Sampling  # noqa: E402
from tierline.engine.families import image_layout_of  # noqa: E402
from tierline.engine.model import read_config  # noqa: E402
from tierline.testing.checkpoints import CHECKPOINTS  # noqa: E402
from tierline.testing.mixed_requests import Mixed, Reference, Requests, make_picture, processor_of  # noqa: E402

if TYPE_CHECKING:
    from tests.engine.conftest import Case

IMAGES = [kind for kind, checkpoint in CHECKPOINTS.items() if checkpoint.placeholder]


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_of_any_size_has_the_processors_tokens(case: Callable[[str], Case], kind: str) -> None:
    folder, placeholder = case(kind).folder, CHECKPOINTS[kind].placeholder
    reference, requests = Reference(folder), Requests(folder)
    rng = random.Random(4)
    sides = (1, 2, 5, 16, 31, 32, 33, 63, 64, 65, 66, 97, 100, 129, 200)
    sizes = [(rng.choice(sides), rng.choice(sides)) for _ in range(25)] + [(64, 33), (65, 64), (7, 91), (129, 128)]
    for width, height in sizes:
        if max(width, height) / min(width, height) > 200 or (kind == "llava-clip" and min(width, height) < 2):
            continue
        mixed = Mixed(f"a{placeholder}b", (make_picture(rng, width, height),), 1)
        expected = reference.inputs(mixed)["input_ids"][0].tolist()
        assert list(requests.make("r", mixed).prompt) == expected, (width, height)


@pytest.mark.parametrize("kind", IMAGES)
def test_embeddings_are_the_models_own(case: Callable[[str], Case], kind: str) -> None:
    """Each picture by itself gives what all of a prompt give together."""
    made = case(kind)
    rng = random.Random(5)
    pictures = [make_picture(rng, *size) for size in CHECKPOINTS[kind].sizes]
    family = made.families[0]
    reference = Reference(made.folder)
    inputs = reference.inputs(Mixed(CHECKPOINTS[kind].placeholder * len(pictures), tuple(pictures), 1))
    names = ("pixel_values", "image_grid_thw", "pixel_attention_mask")
    with torch.inference_mode():
        expected = reference.model.get_image_features(**{name: inputs[name] for name in names if name in inputs})
        found = [family.encode([picture])[0] for picture in pictures]
        together = family.encode(pictures)
    joined = torch.cat([each.reshape(-1, each.shape[-1]) for each in expected.pooler_output])
    layout = image_layout_of(read_config(made.folder), made.folder)
    assert layout is not None
    for picture, alone, among in zip(pictures, found, together, strict=True):
        tokens = layout(picture.width, picture.height)
        assert alone.shape == (tokens.tokens.count(tokens.image_token), family.embedding.weight.shape[1])
        torch.testing.assert_close(alone, among, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(found), joined, rtol=1e-4, atol=1e-4)
    assert joined.std() > 0.1, "an image makes a difference"


def test_qwen_positions_go_on_behind_an_image(case: Callable[[str], Case]) -> None:
    family = case("qwen2_5_vl").families[0]
    config = read_config(case("qwen2_5_vl").folder)
    grid = (1, 4, 6)  # 2 x 3 merged patches
    prompt = (1, 2, *[config.image_token_id] * 6, 3)
    span = ImageSpan("picture", 2, 6, grid)
    positions = family.positions(Request("r", prompt, Sampling(4), (span,)))
    assert positions is not None
    assert positions.prompt.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert len(prompt) + positions.shift == 6
    text = family.positions(Request("r", (1, 2, 3), Sampling(4)))
    assert text is not None
    assert (text.prompt.tolist(), text.shift) == ([[0, 1, 2]] * 3, 0)


def test_an_image_token_without_an_image_is_text(case: Callable[[str], Case]) -> None:
    family = case("qwen2_5_vl").families[0]
    token = read_config(case("qwen2_5_vl").folder).image_token_id
    request = Request("r", (1, token, *[token] * 6, 3), Sampling(4), (ImageSpan("picture", 2, 6, (1, 4, 6)),))
    positions = family.positions(request)
    assert positions is not None
    assert positions.prompt[0].tolist()[:3] == [0, 1, 2]


def test_an_image_that_is_too_long_for_qwen(case: Callable[[str], Case]) -> None:
    folder = case("qwen2_5_vl").folder
    layout = image_layout_of(read_config(folder), folder)
    assert layout is not None
    with pytest.raises(InvalidInput, match="an image of 401 x 2 pixels: absolute aspect ratio"):
        layout(401, 2)
    assert layout(400, 2).tokens


def test_grids_say_how_an_image_is_cut(case: Callable[[str], Case]) -> None:
    for kind, expected in (("smolvlm", (1, 2)), ("idefics3", (0, 0)), ("qwen2_5_vl", (1, 6, 16)), ("llava-clip", ())):
        folder = case(kind).folder
        layout = image_layout_of(read_config(folder), folder)
        assert layout is not None
        assert layout(64, 30).grid == expected


def test_the_processor_of_the_reference_prepares_with_pil(case: Callable[[str], Case]) -> None:
    for kind in IMAGES:
        assert type(processor_of(case(kind).folder).image_processor).__name__.endswith("Pil")
