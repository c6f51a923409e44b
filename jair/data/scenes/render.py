"""A scene as a picture, anti-aliased."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from jair.data.scenes.world import RADIUS, Scene, Thing
from jair.encoders import optional_import

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 90, 235),
    "yellow": (245, 220, 50),
    "purple": (150, 60, 190),
    "orange": (250, 140, 30),
    "white": (250, 250, 250),
}
SHADE = 0.35  # of a texture's dark parts


def render(scene: Scene, size: int = 64) -> Image:
    """The picture, RGB, size x size."""
    pillow = optional_import("PIL.Image")
    level = round(255 * scene.background)
    image: Image = pillow.new("RGB", (size, size), (level, level, level))
    for thing in scene.things:
        dark = tuple(round(SHADE * channel) for channel in COLOURS[thing.colour])
        mask = _mask(thing, size)
        image.paste(COLOURS[thing.colour], (0, 0, size, size), mask)
        if thing.texture != "plain":
            pattern = pillow.fromarray(_pattern(thing.texture, size))
            both = optional_import("PIL.ImageChops").multiply(mask, pattern)
            image.paste(dark, (0, 0, size, size), both)
    return image


def _mask(thing: Thing, size: int) -> Image:
    aggdraw = optional_import("aggdraw")
    mask: Image = optional_import("PIL.Image").new("L", (size, size), 0)
    canvas, brush = aggdraw.Draw(mask), aggdraw.Brush("white")
    x, y, r = thing.x * size, thing.y * size, RADIUS[thing.size] * size
    if thing.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), None, brush)
    else:
        corners: list[float] = []
        for u, v in _corners(thing.shape):
            corners += [x + r * u, y + r * v]
        canvas.polygon(corners, None, brush)
    canvas.flush()
    return mask


@lru_cache
def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    """Of the outline around the origin, within the unit circle or a little beyond; y points down."""
    if shape == "square":
        return ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
    if shape == "triangle":
        return ((0, -1), (0.95, 0.8), (-0.95, 0.8))
    if shape == "cross":
        arm = 0.33
        return (
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        )  # fmt: skip
    radii = (1.1 if i % 2 == 0 else 0.45 for i in range(10))
    turns = (math.pi * i / 5 - math.pi / 2 for i in range(10))
    return tuple((r * math.cos(turn), r * math.sin(turn)) for r, turn in zip(radii, turns, strict=True))


@lru_cache
def _pattern(texture: str, size: int) -> Any:
    """uint8 [size,size], 255 where the texture is dark."""
    period = size / 64 * (4 if texture == "striped" else 5)
    y, x = np.mgrid[:size, :size] / period
    dots = (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.1
    dark = (x + y) % 1 < 0.45 if texture == "striped" else dots
    return (255 * dark).astype(np.uint8)
