"""Scenes as data: what they hold, which scenes a split may have.

A position is in units of the picture's side. Objects may cover each other a little, never so far that a
shape, a colour or a texture could not be told. Which split a scene belongs to is a function of the scene,
so no two splits share one; some pairs of colour and shape are kept for the split "compositional".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from jair_kernels import _checks as check

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "texture": ("plain", "striped", "dotted"),
    "colour": ("red", "green", "blue", "yellow", "purple", "orange", "white"),
    "shape": ("circle", "square", "triangle", "star", "cross"),
}
HELD_OUT = frozenset({("red", "star"), ("green", "cross"), ("blue", "triangle"), ("yellow", "circle")})
SPLITS = ("train", "val", "test", "compositional")
RADIUS = {"small": 0.105, "large": 0.18}
LEAST, MOST = 2, 5  # objects
LEVELS = 40
APART = 0.9  # centres, in sums of two radii
MARGIN = 0.08  # by which one thing must be to the left of another to be called so


@dataclass(frozen=True)
class Thing:
    """An object: its attributes, and its centre."""

    size: str
    texture: str
    colour: str
    shape: str
    x: float
    y: float

    def is_a(self, wanted: Mapping[str, str]) -> bool:
        """Whether it has these attributes."""
        return all(getattr(self, name) == value for name, value in wanted.items())


@dataclass(frozen=True)
class Scene:
    """Objects from the hindmost to the foremost, and how light the background is, 0 to 1."""

    things: tuple[Thing, ...]
    background: float

    def matching(self, wanted: Mapping[str, str]) -> list[Thing]:
        """The objects with these attributes."""
        return [thing for thing in self.things if thing.is_a(wanted)]

    @property
    def split(self) -> str:
        """The one split that may show it."""
        if any((thing.colour, thing.shape) in HELD_OUT for thing in self.things):
            return "compositional"
        digest = hashlib.blake2b(repr(self).encode(), digest_size=4).digest()
        share = int.from_bytes(digest, "big") % 20
        return {0: "val", 1: "test"}.get(share, "train")


def draw_scene(
    rng: Random, split: str, forced: Sequence[Mapping[str, str]] = (), extra: int | None = None
) -> Scene | None:
    """A scene of a split, or None where this try does not fit.

    Args:
        forced: attributes of the first objects. extra: further objects; None = a random number, so that there
            are LEAST to MOST in all.
    """
    if extra is None:
        extra = rng.randint(max(LEAST - len(forced), 0), max(MOST - len(forced), 0))
    wanted = [*forced, *({} for _ in range(extra))]
    chosen = [_attributes(rng, wish) for wish in wanted]
    if split == "compositional" and not any((c["colour"], c["shape"]) in HELD_OUT for c in chosen):
        free = [i for i, wish in enumerate(wanted) if "colour" not in wish and "shape" not in wish]
        if not free:
            return None
        colour, shape = rng.choice(sorted(HELD_OUT))
        chosen[rng.choice(free)].update(colour=colour, shape=shape)
    places = _places(rng, [RADIUS[c["size"]] for c in chosen])
    if places is None:
        return None
    things = [Thing(**c, x=x, y=y) for c, (x, y) in zip(chosen, places, strict=True)]
    rng.shuffle(things)
    for _ in range(LEVELS):  # the background decides on which side of the division a scene falls
        scene = Scene(tuple(things), round(rng.uniform(0.05, 0.45), 3))
        if scene.split == split:
            return scene
    return None


def _attributes(rng: Random, wish: Mapping[str, str]) -> dict[str, str]:
    return {name: wish.get(name) or rng.choice(values) for name, values in ATTRIBUTES.items()}


def _places(rng: Random, radii: list[float]) -> list[tuple[float, float]] | None:
    places: list[tuple[float, float]] = []
    for radius in radii:
        for _ in range(20):
            x, y = (round(rng.uniform(radius + 0.01, 0.99 - radius), 3) for _ in range(2))
            if all(
                (x - u) ** 2 + (y - v) ** 2 >= (APART * (radius + other)) ** 2
                for (u, v), other in zip(places, radii, strict=False)
            ):
                places.append((x, y))
                break
        else:
            return None
    return places


def check_split(split: str) -> None:
    """Raises ValueError for an unknown one."""
    check.choice("split", split, SPLITS)
