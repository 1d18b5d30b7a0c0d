"""Pictures of coloured shapes from a seed: what tiny-vlm is trained on, and what tests, demo and load generators show it.

A scene is 112 × 112 px with one to four circles, squares and triangles on a plain background. In a *grid* scene each lies
in its own cell of 3 × 3; a *free* scene is drawn as a stranger would draw it: any size, anywhere, sometimes outlined, without
overlaps. A scene is fully determined by its seed; `scene_questions` asks about it. Seeds in `TRAIN_SEEDS` may be trained on,
those in `HELD_OUT_SEEDS` never are: accuracy is measured on them alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE_PX = 112
GRID = 3
CELL_PX = SIDE_PX / GRID
CLEAR_PX = 4.0  # a centre nearer than this to a line of the grid has no position that can be asked for
GAP_PX = 3.0  # between two shapes, so that they do not merge
TRAIN_SEEDS = range(2**40)
HELD_OUT_SEEDS = range(2**40, 2**40 + 2**20)

ShapeKind = Literal["circle", "square", "triangle"]
Colour = Literal["red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "cyan", "black", "white"]
Rgb = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom in px

SHAPES: tuple[ShapeKind, ...] = ("circle", "square", "triangle")
COLOURS: dict[Colour, tuple[Rgb, ...]] = {  # the first is PIL's (CSS's) colour of that name
    "red": ((255, 0, 0), (220, 20, 60)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (50, 205, 50)),
    "blue": ((0, 0, 255), (65, 105, 225), (30, 144, 255), (0, 0, 139)),
    "yellow": ((255, 255, 0), (250, 240, 40)),
    "orange": ((255, 165, 0), (255, 140, 0)),
    "purple": ((128, 0, 128), (148, 0, 211), (160, 32, 240)),
    "pink": ((255, 192, 203), (255, 105, 180)),
    "brown": ((165, 42, 42), (139, 69, 19)),
    "cyan": ((0, 255, 255),),
    "black": ((0, 0, 0),),
    "white": ((255, 255, 255),),
}
PALE: tuple[Rgb, ...] = ((245, 245, 220), (173, 216, 230), (255, 255, 224), (230, 230, 250), (245, 255, 250))
CONTRAST = 75.0  # least distance in RGB between a shape and its background
JITTER = 10

# Rows from the top, columns from the left.
POSITIONS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")


@dataclass(frozen=True, slots=True)
class Shape:
    kind: ShapeKind
    colour: Colour
    rgb: Rgb
    box: Box
    turn: int = 0  # a triangle's apex: 0 up, 1 right, 2 down, 3 left
    lean: float = 0.0  # how far the apex is off the middle, in sides: −0.5 to 0.5
    outline_px: int = 0

    @property
    def centre(self) -> Point:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def cell(self) -> int:
        """Index into POSITIONS of the cell that holds the centre."""
        x, y = self.centre
        return min(int(y / CELL_PX), GRID - 1) * GRID + min(int(x / CELL_PX), GRID - 1)

    @property
    def clear(self) -> bool:
        """Whether the centre is far enough from the lines of the grid for its position to be asked for."""
        return all(abs(at - line * CELL_PX) >= CLEAR_PX for at in self.centre for line in range(1, GRID))

    @property
    def corners(self) -> tuple[Point, ...]:
        """A triangle's corners, apex first; else none."""
        if self.kind != "triangle":
            return ()
        left, top, right, bottom = self.box
        x, y = left + (0.5 + self.lean) * (right - left), top + (0.5 + self.lean) * (bottom - top)
        return (
            ((x, top), (right, bottom), (left, bottom)),
            ((right, y), (left, bottom), (left, top)),
            ((x, bottom), (left, top), (right, top)),
            ((left, y), (right, top), (right, bottom)),
        )[self.turn]


@dataclass(frozen=True, slots=True)
class Scene:
    seed: int
    background: Rgb
    shapes: tuple[Shape, ...]  # in reading order of their cells
    smooth: bool  # edges drawn with anti-aliasing

    @property
    def clear(self) -> bool:
        """Whether every position can be told, so that the scene has one caption."""
        return all(shape.clear for shape in self.shapes) and len({s.cell for s in self.shapes}) == len(self.shapes)


def grid_scene(seed: int) -> Scene:
    """One to four shapes, each in a cell of its own."""
    rng = random.Random(seed)
    background = _background(rng)
    shapes = []
    for cell in rng.sample(range(GRID * GRID), rng.randint(1, 4)):
        width = rng.uniform(20.0, CELL_PX - 3.0)
        height = width * _aspect(rng, (CELL_PX - 3.0) / width)
        left = cell % GRID * CELL_PX + rng.uniform(1.5, CELL_PX - 1.5 - width)
        top = cell // GRID * CELL_PX + rng.uniform(1.5, CELL_PX - 1.5 - height)
        shapes.append(_shape(rng, background, (left, top, left + width, top + height)))
    return _scene(seed, rng, background, shapes)


def free_scene(seed: int, least_px: float = 20.0, most_px: float = 60.0) -> Scene:
    """One to four shapes of any size between two bounds, anywhere, without overlaps."""
    rng = random.Random(f"free {seed}")  # not the draws of the grid scene of that seed
    background = _background(rng)
    boxes = _free_boxes(rng, rng.choice((1, 1, 2, 3, 4)), least_px, most_px)
    return _scene(seed, rng, background, [_shape(rng, background, box, drawn=True) for box in boxes])


def draw(scene: Scene) -> Image:
    """The picture: RGB, SIDE_PX × SIDE_PX."""
    from PIL import Image, ImageDraw

    scale = 4 if scene.smooth else 1
    image = Image.new("RGB", (SIDE_PX * scale, SIDE_PX * scale), scene.background)
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        box = tuple(round(edge * scale) for edge in shape.box)
        outline, width = ((0, 0, 0) if shape.outline_px else None), shape.outline_px * scale
        if shape.kind == "circle":
            pen.ellipse(box, fill=shape.rgb, outline=outline, width=width)
        elif shape.kind == "square":
            pen.rectangle(box, fill=shape.rgb, outline=outline, width=width)
        else:
            corners = [(round(x * scale), round(y * scale)) for x, y in shape.corners]
            pen.polygon(corners, fill=shape.rgb, outline=outline, width=max(width, 1))
    return image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX) if scene.smooth else image


def _scene(seed: int, rng: random.Random, background: Rgb, shapes: list[Shape]) -> Scene:
    return Scene(seed, background, tuple(sorted(shapes, key=lambda shape: shape.cell)), smooth=rng.random() < 0.3)


def _background(rng: random.Random) -> Rgb:
    share = rng.random()
    if share < 0.55:
        return 255, 255, 255
    if share < 0.68:
        return 0, 0, 0
    if share < 0.75:
        return (rng.randint(240, 254),) * 3
    if share < 0.92:
        return (rng.choice((128, 192, 211, rng.randint(100, 215))),) * 3
    return rng.choice(PALE)


def _aspect(rng: random.Random, most: float) -> float:
    """Height over width: mostly 1, sometimes a little off, as hands draw."""
    return min(rng.uniform(0.88, 1.14), most) if rng.random() < 0.25 else 1.0


def _shape(rng: random.Random, background: Rgb, box: Box, drawn: bool = False) -> Shape:
    kind = rng.choice(SHAPES)
    while True:
        colour = rng.choice(tuple(COLOURS))
        tones = COLOURS[colour]
        rgb = tones[0] if rng.random() < 0.5 else rng.choice(tones)
        if rng.random() < 0.6:
            red, green, blue = (min(255, max(0, tone + rng.randint(-JITTER, JITTER))) for tone in rgb)
            rgb = (red, green, blue)
        if sum((a - b) ** 2 for a, b in zip(rgb, background, strict=True)) >= CONTRAST**2:
            break
    turn = rng.randrange(4) if rng.random() < 0.4 else 0
    lean = rng.choice((-0.5, 0.5, rng.uniform(-0.5, 0.5))) if rng.random() < 0.3 else 0.0
    outline_px = rng.randint(1, 3) if drawn and rng.random() < 0.12 else 0
    return Shape(kind, colour, rgb, box, turn, lean, outline_px)


def _free_boxes(rng: random.Random, count: int, least_px: float, most_px: float) -> list[Box]:
    """Boxes with a gap between any two; where they do not fit, the greatest size shrinks until they do."""
    while True:
        boxes: list[Box] = []
        for _ in range(12 * count):
            width = rng.uniform(least_px, most_px)
            height = width * _aspect(rng, most_px / width)
            left, top = rng.uniform(1.0, SIDE_PX - 2.0 - width), rng.uniform(1.0, SIDE_PX - 2.0 - height)
            box = (left, top, left + width, top + height)
            if all(_apart(box, other) for other in boxes):
                boxes.append(box)
            if len(boxes) == count:
                return boxes
        most_px = max(least_px, 0.93 * most_px)


def _apart(one: Box, other: Box) -> bool:
    return (
        one[2] + GAP_PX < other[0]
        or other[2] + GAP_PX < one[0]
        or one[3] + GAP_PX < other[1]
        or other[3] + GAP_PX < one[1]
    )
