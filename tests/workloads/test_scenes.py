"""Scenes: the same from the same seed, shapes apart and inside, questions with the one right answer, seeds that never mix."""

from __future__ import annotations

import random
import re

import pytest

from tierline.workloads.scene_questions import KINDS, SCENE_KINDS, answerable, ask, ask_text, caption
from tierline.workloads.scenes import (
    COLOURS,
    CONTRAST,
    HELD_OUT_SEEDS,
    POSITIONS,
    SIDE_PX,
    TRAIN_SEEDS,
    Scene,
    Shape,
    draw,
    free_scene,
    grid_scene,
)

SCENES = [*(grid_scene(seed) for seed in range(150)), *(free_scene(seed) for seed in range(150))]
RED_CIRCLE = Shape("circle", "red", (255, 0, 0), (5.0, 5.0, 29.0, 29.0))
BLUE_SQUARE = Shape("square", "blue", (0, 0, 255), (45.0, 45.0, 69.0, 69.0))
BLUE_CIRCLE = Shape("circle", "blue", (0, 0, 255), (80.0, 45.0, 104.0, 69.0))
SCENE = Scene(0, (255, 255, 255), (RED_CIRCLE, BLUE_SQUARE, BLUE_CIRCLE), smooth=False)


def test_a_seed_is_a_scene_and_training_never_sees_the_held_out_ones() -> None:
    assert grid_scene(7) == grid_scene(7) != grid_scene(8)
    assert free_scene(7) == free_scene(7) != free_scene(8)
    assert {grid_scene(seed).shapes for seed in range(50)}.isdisjoint(free_scene(seed).shapes for seed in range(50))
    assert TRAIN_SEEDS.stop == HELD_OUT_SEEDS.start and len(HELD_OUT_SEEDS) == 2**20


def test_shapes_lie_inside_apart_and_stand_out() -> None:
    for scene in SCENES:
        assert 1 <= len(scene.shapes) <= 4
        for index, shape in enumerate(scene.shapes):
            left, top, right, bottom = shape.box
            assert left >= 0 and top >= 0 and right < SIDE_PX and bottom < SIDE_PX
            assert min(right - left, bottom - top) >= 17.0
            assert sum((a - b) ** 2 for a, b in zip(shape.rgb, scene.background, strict=True)) >= CONTRAST**2
            for other in scene.shapes[:index]:
                (l1, t1, r1, b1), (l2, t2, r2, b2) = shape.box, other.box
                assert r1 < l2 or r2 < l1 or b1 < t2 or b2 < t1


def test_a_grid_scene_has_one_caption_in_reading_order() -> None:
    for seed in range(100):
        scene = grid_scene(seed)
        assert scene.clear
        cells = [shape.cell for shape in scene.shapes]
        assert cells == sorted(set(cells))
    assert caption(SCENE) == "a red circle at the top left, a blue square in the middle, a blue circle on the right"


def test_free_shapes_have_any_size_from_20_to_60_px() -> None:
    widths = [shape.box[2] - shape.box[0] for seed in range(300) for shape in free_scene(seed).shapes]
    assert 20.0 <= min(widths) < 23.0 and 55.0 < max(widths) <= 60.0


def test_the_picture_shows_the_scene() -> None:
    image = draw(SCENE)
    assert image.size == (SIDE_PX, SIDE_PX) and image.mode == "RGB"
    assert [image.getpixel(at) for at in ((17, 17), (57, 57), (92, 57), (57, 17))] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 0, 255),
        (255, 255, 255),
    ]
    for scene in SCENES:
        image = draw(scene)
        for shape in scene.shapes:
            x, y = shape.centre
            if shape.kind == "triangle":
                x, y = (sum(corner[axis] for corner in shape.corners) / 3 for axis in (0, 1))
            assert image.getpixel((round(x), round(y))) == shape.rgb


def test_answers_follow_from_the_scene() -> None:
    rng = random.Random(0)
    asked = [ask(SCENE, rng, kind) for kind in SCENE_KINDS for _ in range(200)]
    plain = {q.text.lower().rstrip("?.").replace("color", "colour"): q.answer for q in asked}
    assert plain["how many shapes are there"] == "3"
    assert plain["how many circles are there"] == "2"
    assert plain["what colour is the square"] == "blue"
    assert plain["what is the red shape"] == "circle"
    assert plain["where is the red circle"] == "top left"
    assert plain["is there a blue circle"] == "yes"
    assert plain["is there a red square"] == "no"
    assert not any(re.search(r"the circle\b", text) for text in plain)  # there are two
    assert not any(text.startswith("where") and "blue shape" in text for text in plain)


def test_what_is_in_doubt_is_not_asked() -> None:
    between = Scene(0, (0, 0, 0), (Shape("circle", "red", (255, 0, 0), (25.0, 25.0, 49.0, 49.0)),), smooth=False)
    assert not between.clear
    assert set(answerable(between)) == {"count", "colour", "shape", "yes-no"}
    with pytest.raises(ValueError, match="cannot answer 'position'"):
        ask(between, random.Random(0), "position")


def test_questions_repeat_from_their_seed_and_answers_are_of_closed_sets() -> None:
    allowed = {"colour": set(COLOURS), "shape": {"circle", "square", "triangle"}, "position": set(POSITIONS)}
    allowed |= {"count": set("01234"), "yes-no": {"yes", "no"}}
    for scene in SCENES:
        for kind in answerable(scene):
            question = ask(scene, random.Random(scene.seed), kind)
            assert question == ask(scene, random.Random(scene.seed), kind)
            assert question.answer in allowed.get(kind, {caption(scene)})
    assert [ask_text(random.Random(3)) for _ in range(2)] == [ask_text(random.Random(3))] * 2
    assert {ask_text(random.Random(seed)).kind for seed in range(50)} == {KINDS[-1]}


def test_yes_is_about_as_frequent_as_no() -> None:
    rng = random.Random(0)
    answers = [ask(scene, rng, "yes-no").answer for scene in SCENES for _ in range(5)]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6
