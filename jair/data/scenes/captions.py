"""Captions of scenes: true ones, and false ones that differ in one attribute."""

from __future__ import annotations

from random import Random

from jair.data.scenes.questions import DIRECTIONS, Wish, article, describe
from jair.data.scenes.world import ATTRIBUTES, MARGIN, Scene, Thing

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
