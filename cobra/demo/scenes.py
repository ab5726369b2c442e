"""Rendered scenes of one to three coloured shapes on a 3x3 grid, the demonstration's stand-in for photos.

A scene is 48x48 px and a cell 16x16 px, the patch size of `cobra-tiny`'s towers, so an object lies within one patch.
What a scene holds decides its split: held-out scenes differ from every training scene in at least one object, whatever
the seeds, because the split is read from a hash of the content.
"""

import hashlib
import random
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Literal

from PIL import Image, ImageDraw

Split = Literal["train", "held-out"]

SHAPES = ("circle", "square", "triangle", "cross", "star")
# No channel of a colour is darker than the background, so a shape always brightens its cell. Where colours brighten
# and darken it by turns, tiny towers learn colours and places but not shapes: 0 of 100 were right after 1,550 steps.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (250, 92, 92),
    "green": (92, 236, 92),
    "blue": (92, 112, 255),
    "yellow": (252, 240, 92),
    "purple": (196, 92, 250),
    "cyan": (92, 240, 246),
}
# Not far from the middle grey that pixels are normalised around, so that an empty patch stays small.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"grey": (92, 92, 92), "dark": (76, 76, 76)}

GRID = 3
CELL_PX = 16
IMAGE_PX = GRID * CELL_PX
MAX_OBJECTS = 3

# Objects are drawn at this many times the size and averaged down: smooth edges from PIL's hard-edged drawing.
_SUPERSAMPLING = 4
# Radii and shifts in px of the final image; 7.2 x 1.02 (the widest outline) + 0.6 stays within a cell's half of 8.
_RADIUS_PX = (6.0, 7.2)
_SHIFT_PX = 0.6
# Backgrounds and colours vary a little, so that no two renderings are alike in every pixel.
_SHADE = 8

_HELD_OUT_SHARE = 0.1
# How often a further object repeats the shape, or the shape and the colour, of the first: counts above one.
_SAME_KIND = 0.15
_SAME_SHAPE = 0.25


@dataclass(frozen=True, order=True)
class SceneObject:
    """One object; objects compare by column, then row, so that sorting gives the order in which captions name them."""

    column: int
    """0 (left) to 2 (right)."""
    row: int
    """0 (top) to 2 (bottom)."""
    shape: str
    """One of `SHAPES`."""
    colour: str
    """One of `COLOURS`."""

    @property
    def kind(self) -> str:
        """Colour and shape, e.g. `red circle`."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects and background of one image."""

    objects: tuple[SceneObject, ...]
    """One to three objects in distinct cells, sorted."""
    background: str
    """One of `BACKGROUNDS`."""
    variation: int
    """Seed of sizes, shifts and shades, which no caption mentions."""

    @property
    def content(self) -> str:
        """The objects and their cells as text; equal for two scenes that differ in background or variation only."""
        return "; ".join(f"{item.kind} {item.row} {item.column}" for item in self.objects)

    @property
    def split(self) -> Split:
        """The split that the scene's content belongs to."""
        digest = hashlib.sha256(self.content.encode()).digest()
        return "held-out" if int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32 else "train"


def random_scene(rng: random.Random, split: Split, max_objects: int = MAX_OBJECTS) -> Scene:
    """Draw a scene of a split, with 1 to `max_objects` (3 at most) objects in equal shares; `rng` moves on."""
    while True:
        scene = _any_scene(rng, max_objects)
        if scene.split == split:
            return scene


def _any_scene(rng: random.Random, max_objects: int) -> Scene:
    count = rng.randint(1, max_objects)
    kinds: list[tuple[str, str]] = []
    for _ in range(count):
        shape, colour = rng.choice(SHAPES), rng.choice(tuple(COLOURS))
        if kinds:
            draw = rng.random()
            if draw < _SAME_KIND:
                shape, colour = kinds[0]
            elif draw < _SAME_KIND + _SAME_SHAPE:
                shape = kinds[0][0]
        kinds.append((shape, colour))
    cells = rng.sample(range(GRID * GRID), count)
    objects = sorted(
        SceneObject(column=cell % GRID, row=cell // GRID, shape=shape, colour=colour)
        for cell, (shape, colour) in zip(cells, kinds, strict=True)
    )
    return Scene(tuple(objects), rng.choice(tuple(BACKGROUNDS)), rng.getrandbits(32))


def render(scene: Scene) -> Image.Image:
    """Draw a scene as a 48x48 RGB image; the same scene gives the same pixels."""
    rng = random.Random(scene.variation)
    size = IMAGE_PX * _SUPERSAMPLING
    image = Image.new("RGB", (size, size), _vary(rng, BACKGROUNDS[scene.background]))
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        radius = rng.uniform(*_RADIUS_PX)
        x = (item.column + 0.5) * CELL_PX + rng.uniform(-_SHIFT_PX, _SHIFT_PX)
        y = (item.row + 0.5) * CELL_PX + rng.uniform(-_SHIFT_PX, _SHIFT_PX)
        outline = [
            ((x + radius * dx) * _SUPERSAMPLING, (y + radius * dy) * _SUPERSAMPLING) for dx, dy in _OUTLINES[item.shape]
        ]
        draw.polygon(outline, fill=_vary(rng, COLOURS[item.colour]))
    return image.reduce(_SUPERSAMPLING)


def _vary(rng: random.Random, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    shift = rng.randint(-_SHADE, _SHADE)
    red, green, blue = (min(255, max(0, value + shift)) for value in colour)
    return red, green, blue


def _spokes(radii: tuple[float, ...], corners: int) -> list[tuple[float, float]]:
    """Return a polygon's corners, the first one straight up, at radii that repeat around the centre."""
    return [
        (radii[i % len(radii)] * sin(2 * pi * i / corners), -radii[i % len(radii)] * cos(2 * pi * i / corners))
        for i in range(corners)
    ]


# Corners around (0, 0), y down; the extent is about 1 so that all shapes look alike in size.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _spokes((1.0,), 48),
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0.0, -1.0), (1.02, 0.85), (-1.02, 0.85)],
    # Columns of the corners, then rows.
    "cross": list(
        zip(
            (-0.34, 0.34, 0.34, 1.0, 1.0, 0.34, 0.34, -0.34, -0.34, -1.0, -1.0, -0.34),
            (-1.0, -1.0, -0.34, -0.34, 0.34, 0.34, 1.0, 1.0, 0.34, 0.34, -0.34, -0.34),
            strict=True,
        )
    ),
    "star": _spokes((1.02, 0.43), 10),
}
