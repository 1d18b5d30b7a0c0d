"""Questions about a scene, and small questions without one, each with the single right answer.

`ask` draws questions of every kind that the scene can answer without doubt: no position near a line of the grid, no "the
circle" where there are two. Wordings vary (British and American spelling, with and without the question mark); answers do
not, so that an exact match is a fair test.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tierline.workloads.scenes import COLOURS, POSITIONS, SHAPES, Scene, Shape

Kind = Literal["caption", "count", "colour", "shape", "position", "yes-no", "text"]
KINDS: tuple[Kind, ...] = ("caption", "count", "colour", "shape", "position", "yes-no", "text")
SCENE_KINDS: tuple[Kind, ...] = KINDS[:-1]


@dataclass(frozen=True, slots=True)
class Question:
    kind: Kind
    text: str
    answer: str


CAPTION = (
    "Describe the picture.", "Describe this picture.", "Describe the image.", "Describe this image.",
    "What is in the picture?", "What is in this image?", "What do you see?", "What can you see in this picture?",
    "What does the picture show?", "Caption this image.", "What's in this image?",
)  # fmt: skip
COUNT_ALL = (
    "How many shapes are there?", "How many shapes are in the picture?", "How many shapes do you see?",
    "Count the shapes.", "How many shapes are in this image?", "How many objects are there?",
)  # fmt: skip
COUNT_SOME = (
    "How many {} are there?", "How many {} are in the picture?", "How many {} do you see?", "Count the {}.",
    "How many {} are in this image?",
)  # fmt: skip
COLOUR_OF = (
    "What colour is {}?", "What is the colour of {}?", "Which colour is {}?", "Which colour does {} have?",
    "Tell me the colour of {}.", "What colour does {} have?",
)  # fmt: skip
SHAPE_ONLY = (
    "What shape is this?", "Which shape is this?", "What shape is it?", "What shape do you see?",
    "What shape is in the picture?", "What is this shape?", "What shape is shown?",
)  # fmt: skip
SHAPE_IN = ("What shape is {}?", "Which shape is {}?", "What is the shape {}?")
SHAPE_COLOURED = (
    "What shape is {}?", "Which shape is {}?", "What shape is the {} one?", "What is the {} shape?",
    "What shape is the {} object?",
)  # fmt: skip
WHERE = (
    "Where is {}?", "In which part of the picture is {}?", "What is the position of {}?", "Where do you see {}?",
    "Where can I find {}?",
)  # fmt: skip
EXISTS = (
    "Is there {}?",
    "Is there {} in the picture?",
    "Do you see {}?",
    "Can you see {}?",
    "Does the picture show {}?",
)


def answerable(scene: Scene) -> tuple[Kind, ...]:
    """The kinds that a scene can answer."""
    places = any(_names(scene, shape) for shape in scene.shapes if shape.clear)
    return tuple(
        kind
        for kind in SCENE_KINDS
        if not (kind == "caption" and not scene.clear)
        and not (kind == "position" and not places)
        and not (kind == "colour" and not any(_names(scene, s, "colour") for s in scene.shapes))
        and not (kind == "shape" and not any(_names(scene, s, "kind") for s in scene.shapes))
    )


def ask(scene: Scene, rng: random.Random, kind: Kind) -> Question:
    """One question of a kind; the kind must be answerable (ValueError otherwise)."""
    if kind not in answerable(scene):
        raise ValueError(f"scene {scene.seed} cannot answer {kind!r}; it answers {answerable(scene)}")
    text, answer = _ASK[kind](scene, rng)
    return Question(kind, _worded(rng, text), answer)


def ask_text(rng: random.Random) -> Question:
    """One question that needs no picture."""
    text, answer = rng.choices(_TEXTS, _TEXT_WEIGHTS)[0](rng)
    return Question("text", _worded(rng, text), answer)


def caption(scene: Scene) -> str:
    """The one caption: every shape in reading order."""
    return ", ".join(f"{_a(f'{s.colour} {s.kind}')} {_at(s)}" for s in scene.shapes)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _at(shape: Shape) -> str:
    place = POSITIONS[shape.cell]
    return (
        f"in the {place}"
        if place == "middle"
        else f"on the {place}"
        if place in ("left", "right")
        else f"at the {place}"
    )


def _names(scene: Scene, shape: Shape, hidden: str = "") -> list[str]:
    """What singles a shape out, without telling its `hidden` property ("colour", "kind")."""
    names = []
    alike = [s for s in scene.shapes if s.kind == shape.kind]
    toned = [s for s in scene.shapes if s.colour == shape.colour]
    if hidden != "kind" and len(alike) == 1:
        names.append(f"the {shape.kind}")
    if hidden != "colour" and len(toned) == 1:
        names.append(f"the {shape.colour} shape")
    if not hidden and sum(s.kind == shape.kind for s in toned) == 1:
        names.append(f"the {shape.colour} {shape.kind}")
    if hidden and shape.clear and sum(s.cell == shape.cell for s in scene.shapes) == 1 and scene.clear:
        names.append(f"the shape {_at(shape)}")
    if len(scene.shapes) == 1:
        names += ["the shape", "it"]
    return names


def _caption(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return rng.choice(CAPTION), caption(scene)


def _count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    share, shown = rng.random(), rng.choice(scene.shapes)
    kind = shown.kind if rng.random() < 0.75 else rng.choice(SHAPES)
    colour = shown.colour if rng.random() < 0.75 else rng.choice(tuple(COLOURS))
    if share < 0.5:
        return rng.choice(COUNT_ALL), str(len(scene.shapes))
    if share < 0.8:
        return rng.choice(COUNT_SOME).format(f"{kind}s"), str(sum(s.kind == kind for s in scene.shapes))
    return rng.choice(COUNT_SOME).format(f"{colour} shapes"), str(sum(s.colour == colour for s in scene.shapes))


def _colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice([s for s in scene.shapes if _names(scene, s, "colour")])
    return rng.choice(COLOUR_OF).format(rng.choice(_names(scene, shape, "colour"))), shape.colour


def _shape(scene: Scene, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice([s for s in scene.shapes if _names(scene, s, "kind")])
    name = rng.choice(_names(scene, shape, "kind"))
    if name in ("it", "the shape"):
        return rng.choice(SHAPE_ONLY), shape.kind
    if name.startswith("the shape "):
        return rng.choice(SHAPE_IN).format(name.removeprefix("the shape ")), shape.kind
    return rng.choice(SHAPE_COLOURED).format(shape.colour), shape.kind


def _position(scene: Scene, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice([s for s in scene.shapes if s.clear and _names(scene, s)])
    return rng.choice(WHERE).format(rng.choice(_names(scene, shape))), POSITIONS[shape.cell]


def _yes_no(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """About as often yes as no: what is drawn at random is sometimes there."""
    yes, share, shown = rng.random() < 0.35, rng.random(), rng.choice(scene.shapes)
    kind, colour = (shown.kind, shown.colour) if yes else (rng.choice(SHAPES), rng.choice(tuple(COLOURS)))
    if share < 0.3:
        thing, found = _a(kind), any(s.kind == kind for s in scene.shapes)
    elif share < 0.55:
        thing, found = _a(f"{colour} shape"), any(s.colour == colour for s in scene.shapes)
    elif share < 0.8 or sum(s.kind == shown.kind for s in scene.shapes) > 1:
        if not yes and rng.random() < 0.5:  # half right is the harder no
            kind, colour = (shown.kind, colour) if rng.random() < 0.5 else (kind, shown.colour)
        thing, found = _a(f"{colour} {kind}"), any((s.kind, s.colour) == (kind, colour) for s in scene.shapes)
    else:
        return f"Is the {shown.kind} {colour}?", "yes" if shown.colour == colour else "no"
    return rng.choice(EXISTS).format(thing), "yes" if found else "no"


_ASK: dict[Kind, Callable[[Scene, random.Random], tuple[str, str]]] = {
    "caption": _caption,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "position": _position,
    "yes-no": _yes_no,
}


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(10), rng.randrange(10)
    if rng.random() < 0.5:
        return rng.choice(("What is {} plus {}?", "What is {} + {}?", "How much is {} + {}?")).format(a, b), str(a + b)
    a, b = max(a, b), min(a, b)
    return rng.choice(("What is {} minus {}?", "What is {} - {}?", "How much is {} - {}?")).format(a, b), str(a - b)


def _after(rng: random.Random) -> tuple[str, str]:
    number = rng.randrange(100)
    return rng.choice(("What comes after {}?", "Which number comes after {}?")).format(number), str(number + 1)


def _larger(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(100), 2)
    if rng.random() < 0.5:
        return rng.choice(("Which is larger, {} or {}?", "Which number is bigger, {} or {}?")).format(a, b), str(
            max(a, b)
        )
    return f"Which is smaller, {a} or {b}?", str(min(a, b))


def _repeat(rng: random.Random) -> tuple[str, str]:
    words = f"{rng.choice(tuple(COLOURS))} {rng.choice(SHAPES)}"
    return rng.choice(("Repeat: {}", "Say: {}", "Repeat the words {}.")).format(words), words


FACTS = (
    ("How many sides does a triangle have?", "3"), ("How many sides does a square have?", "4"),
    ("How many corners does a triangle have?", "3"), ("How many corners does a square have?", "4"),
    ("How many days are in a week?", "7"), ("Which shape is round?", "circle"), ("Which shape has three sides?", "triangle"),
    ("Which shape has four sides?", "square"), ("What is the opposite of left?", "right"),
    ("What is the opposite of right?", "left"), ("What is the opposite of top?", "bottom"),
    ("What is the opposite of bottom?", "top"), ("What is the opposite of black?", "white"),
    ("What is the opposite of white?", "black"), ("What is the opposite of yes?", "no"),
    ("What colour do red and blue make?", "purple"), ("What colour do red and yellow make?", "orange"),
    ("What colour do blue and yellow make?", "green"), ("What colour do red and white make?", "pink"),
    ("What colour is the sky?", "blue"), ("What colour is grass?", "green"), ("What colour is snow?", "white"),
    ("Hello", "Hello! Show me a picture of shapes, or ask me a small question."),
    ("Hi", "Hello! Show me a picture of shapes, or ask me a small question."),
    ("Hello!", "Hello! Show me a picture of shapes, or ask me a small question."),
    ("Who are you?", "I am tiny-vlm, the small model inside Tierline."),
    ("What is your name?", "I am tiny-vlm, the small model inside Tierline."),
    ("What can you do?", "I name, count and find coloured shapes in pictures."),
    ("Thanks", "You are welcome."), ("Thank you.", "You are welcome."),
)  # fmt: skip


def _fact(rng: random.Random) -> tuple[str, str]:
    return rng.choice(FACTS)


_TEXTS = (_sum, _after, _larger, _repeat, _fact)
_TEXT_WEIGHTS = (5, 2, 2, 2, 5)


def _worded(rng: random.Random, text: str) -> str:
    """A wording as people type it."""
    if rng.random() < 0.4:
        text = text.replace("colour", "color")
    if rng.random() < 0.2:
        text = text.rstrip("?.")
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    return text
