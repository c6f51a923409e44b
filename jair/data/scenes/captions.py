"""Captions of scenes, true ones and false ones that differ in one attribute; and lists of their objects."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from jair.data.scenes.questions import DIRECTIONS, Wish, article, describe
from jair.data.scenes.world import ATTRIBUTES, MARGIN, Scene, Thing

ORDERS: dict[str, Callable[[Thing], float]] = {
    "from left to right": lambda thing: thing.x,
    "from right to left": lambda thing: -thing.x,
    "from top to bottom": lambda thing: thing.y,
    "from bottom to top": lambda thing: -thing.y,
}
# Of questions about objects, those for all of them; of the others, for all in an order; of the rest, for an
# attribute that some object has.
ALL, ALL_IN_ORDER, THERE = 0.2, 0.25, 0.85
NUMBERS = ("no", "one", "two", "three", "four", "five")


def captions(scene: Scene, rng: Random, how_many: int = 3) -> list[str]:
    """True captions of varying wording and detail."""
    return [
        _caption([_wish(t, rng) for t in chosen], chosen, scene, rng)
        for chosen in _choices(scene, rng, how_many)
    ]


def false_caption(scene: Scene, rng: Random) -> str:
    """A caption in which one object has an attribute that makes it one the scene does not have."""
    (chosen,) = _choices(scene, rng, 1)
    wishes = [_wish(thing, rng) for thing in chosen]
    tries = [(i, name) for i, wish in enumerate(wishes) for name in wish]
    rng.shuffle(tries)
    for i, name in tries:
        for value in rng.sample(ATTRIBUTES[name], len(ATTRIBUTES[name])):
            changed = {**wishes[i], name: value}
            if not scene.matching(changed):
                return _caption([*wishes[:i], changed, *wishes[i + 1 :]], chosen, scene, rng)
    more = NUMBERS[len(scene.things) - 1]
    return f"a picture of {more} objects"


def about_objects(scene: Scene, rng: Random) -> tuple[str, str]:
    """A question whose answer lists objects, and the answer: all of them, those in an order across the
    picture, or only those with some attribute.
    """
    if rng.random() < ALL:
        names = sorted(describe({"colour": thing.colour, "shape": thing.shape}) for thing in scene.things)
        return "what is in the picture?", ", ".join(names)
    order = rng.choice(list(ORDERS))
    things = sorted(scene.things, key=ORDERS[order])
    if rng.random() < ALL_IN_ORDER:
        return f"what is in the picture {order}?", ", ".join(_whole(thing) for thing in things)
    name = rng.choice(list(ATTRIBUTES))
    value = getattr(rng.choice(things), name) if rng.random() < THERE else rng.choice(ATTRIBUTES[name])
    found = [thing for thing in things if getattr(thing, name) == value]
    told = [other for other in ATTRIBUTES if other != name or name == "shape"]
    names = [describe({other: getattr(thing, other) for other in told}) for thing in found]
    return f"which {describe({name: value}, plural=True)} are there {order}?", ", ".join(names) or "none"


def _whole(thing: Thing) -> str:
    return describe({name: getattr(thing, name) for name in ATTRIBUTES})


def _choices(scene: Scene, rng: Random, how_many: int) -> list[list[Thing]]:
    return [rng.sample(scene.things, min(len(scene.things), rng.randint(1, 3))) for _ in range(how_many)]


def _wish(thing: Thing, rng: Random) -> Wish:
    """Colour and shape, at times size and texture too."""
    names = {"colour", "shape"} | {name for name in ("size", "texture") if rng.random() < 0.4}
    return {name: getattr(thing, name) for name in ATTRIBUTES if name in names}


def _caption(wishes: list[Wish], things: list[Thing], scene: Scene, rng: Random) -> str:
    phrases = [article(describe(wish)) for wish in wishes]
    if len(phrases) == 2 and rng.random() < 0.6:
        ways = [way for way, ahead in DIRECTIONS.items() if ahead(*things) >= MARGIN]
        if ways:
            return f"{phrases[0]} {rng.choice(ways)} {phrases[1]}"
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    if len(things) == len(scene.things) and rng.random() < 0.5:
        return f"{NUMBERS[len(things)]} objects: {listed}"
    return rng.choice(("{}", "a picture with {}", "there is {}")).format(listed)
