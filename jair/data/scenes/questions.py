"""Questions about scenes, in the manner of CLEVR and GQA: each with one right answer.

The answer is chosen first, by `fate`, evenly among those that the kind of question has, and scenes are drawn
until one fits; so the words of a question say little about its answer. Each function makes one try, with the
same fate every time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from random import Random
from typing import NamedTuple

from jair.data.scenes.world import ATTRIBUTES, MARGIN, Scene, Thing, draw_scene

Wish = dict[str, str]
YES_NO = ("yes", "no")
MOST_COUNTED = 4


class Question(NamedTuple):
    """A scene, what is asked about it, the answer, the kind of question; `parts` says it without words."""

    scene: Scene
    prompt: str
    answer: str
    kind: str
    parts: tuple[object, ...]


def describe(wish: Wish, plural: bool = False) -> str:
    """ "small red circle", "striped objects"; in the order size, texture, colour, shape."""
    words = [wish[name] for name in ("size", "texture", "colour") if name in wish]
    noun = wish.get("shape", "object")
    if plural:
        noun = {"cross": "crosses"}.get(noun, noun + "s")
    return " ".join([*words, noun])


def article(phrase: str) -> str:
    """With "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def only(scene: Scene, thing: Thing, rng: Random, without: tuple[str, ...] = ()) -> Wish | None:
    """The fewest attributes that no other object shares, in a random choice among equals; None if all do."""
    names = [name for name in ATTRIBUTES if name not in without]
    rng.shuffle(names)
    for count in range(1, len(names) + 1):
        for chosen in combinations(names, count):
            wish = {name: getattr(thing, name) for name in ATTRIBUTES if name in chosen}
            if len(scene.matching(wish)) == 1:
                return wish
    return None


def some(rng: Random, count: int) -> Wish:
    """`count` random attributes with random values."""
    names = rng.sample(list(ATTRIBUTES), count)
    return {name: rng.choice(ATTRIBUTES[name]) for name in ATTRIBUTES if name in names}


def query(rng: Random, split: str, fate: Random) -> Question | None:
    """What colour, shape, size or texture an object has."""
    name = fate.choice(list(ATTRIBUTES))
    value = fate.choice(ATTRIBUTES[name])
    scene = draw_scene(rng, split, [{name: value}])
    if scene is None:
        return None
    thing = rng.choice(scene.matching({name: value}))
    wish = only(scene, thing, rng, without=(name,))
    if wish is None:
        return None
    asked = "how large" if name == "size" else f"what {name}"
    return Question(scene, f"{asked} is the {describe(wish)}?", value, "query", (name, wish))


def count(rng: Random, split: str, fate: Random) -> Question | None:
    """How many objects have one or two attributes."""
    number = fate.randint(0, MOST_COUNTED)
    wish = some(rng, rng.randint(1, 2))
    scene = draw_scene(rng, split, [wish] * number)
    if scene is None or len(scene.matching(wish)) != number:
        return None
    return Question(
        scene, f"how many {describe(wish, plural=True)} are there?", str(number), "count", (wish,)
    )


def compare(rng: Random, split: str, fate: Random) -> Question | None:
    """Whether there are more of one than of another, or whether two objects share an attribute."""
    answer = fate.choice(YES_NO)
    if fate.random() < 0.5:
        name = rng.choice(("colour", "shape", "texture"))
        one, other = ({name: value} for value in rng.sample(ATTRIBUTES[name], 2))
        more = rng.randint(1, 3)
        fewer = rng.randint(0, more - 1) if answer == "yes" else more
        scene = draw_scene(rng, split, [one] * more + [other] * fewer)
        if answer == "no" and rng.random() < 0.5:
            one, other = other, one
        if scene is None or (len(scene.matching(one)) > len(scene.matching(other))) != (answer == "yes"):
            return None
        prompt = f"are there more {describe(one, plural=True)} than {describe(other, plural=True)}?"
        return Question(scene, prompt, answer, "compare", ("more", one, other))
    name = rng.choice(list(ATTRIBUTES))
    value = rng.choice(ATTRIBUTES[name])
    second = value if answer == "yes" else rng.choice([v for v in ATTRIBUTES[name] if v != value])
    scene = draw_scene(rng, split, [{name: value}, {name: second}])
    if scene is None:
        return None
    pairs = [
        (a, b)
        for a, b in combinations(scene.things, 2)
        if (getattr(a, name) == getattr(b, name)) == (answer == "yes")
    ]
    if not pairs:
        return None
    wishes = [only(scene, thing, rng, without=(name,)) for thing in rng.choice(pairs)]
    if wishes[0] is None or wishes[1] is None:
        return None
    prompt = f"do the {describe(wishes[0])} and the {describe(wishes[1])} have the same {name}?"
    return Question(scene, prompt, answer, "compare", ("same", name, wishes[0], wishes[1]))


DIRECTIONS: dict[str, Callable[[Thing, Thing], float]] = {
    "to the left of": lambda a, b: b.x - a.x,
    "to the right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}


def relate(rng: Random, split: str, fate: Random) -> Question | None:
    """Whether one object is to the left of another, or what the only object to the left of it is."""
    direction = rng.choice(list(DIRECTIONS))
    ahead = DIRECTIONS[direction]
    if fate.random() < 0.5:
        answer = fate.choice(YES_NO)
        scene = draw_scene(rng, split)
        if scene is None:
            return None
        a, b = rng.sample(scene.things, 2)
        if abs(ahead(a, b)) < MARGIN or (ahead(a, b) > 0) != (answer == "yes"):
            return None
        one, other = only(scene, a, rng), only(scene, b, rng)
        if one is None or other is None:
            return None
        prompt = f"is the {describe(one)} {direction} the {describe(other)}?"
        return Question(scene, prompt, answer, "relate", ("is", direction, one, other))
    name = fate.choice(("colour", "shape"))
    value = fate.choice(ATTRIBUTES[name])
    scene = draw_scene(rng, split, [{name: value}], extra=rng.randint(1, 3))
    if scene is None:
        return None
    thing = rng.choice(scene.matching({name: value}))
    others = [b for b in scene.things if b is not thing and ahead(thing, b) >= MARGIN]
    alone = [
        b
        for b in others
        if all(ahead(c, b) <= -MARGIN for c in scene.things if c is not thing and c is not b)
    ]
    if not alone:
        return None
    base = rng.choice(alone)
    wish = only(scene, base, rng)
    if wish is None:
        return None
    prompt = f"what {name} is the object {direction} the {describe(wish)}?"
    return Question(scene, prompt, value, "relate", ("what", name, direction, wish))


def verify(rng: Random, split: str, fate: Random) -> Question | None:
    """Whether there is an object with two attributes; where not, each of them is there by itself."""
    answer = fate.choice(YES_NO)
    wish = some(rng, 2)
    if answer == "yes":
        scene = draw_scene(rng, split, [wish])
    else:
        scene = draw_scene(rng, split, [{name: value} for name, value in wish.items()])
    if scene is None or bool(scene.matching(wish)) != (answer == "yes"):
        return None
    return Question(scene, f"is there {article(describe(wish))}?", answer, "verify", (wish,))


def logical(rng: Random, split: str, fate: Random) -> Question | None:
    """Two conditions joined by and, or, not."""
    answer = fate.choice(YES_NO)
    joint = fate.choice(("and", "or", "not"))
    if joint == "not":
        shape, colour = rng.choice(ATTRIBUTES["shape"]), rng.choice(ATTRIBUTES["colour"])
        scene = draw_scene(
            rng, split, [{"shape": shape, "colour": colour} if answer == "no" else {"shape": shape}]
        )
        if scene is None:
            return None
        found = any(thing.shape == shape and thing.colour != colour for thing in scene.things)
        prompt = f"is there {article(shape)} that is not {colour}?"
        parts: tuple[object, ...] = ("not", {"shape": shape}, {"colour": colour})
    else:
        one, other = some(rng, rng.randint(1, 2)), some(rng, rng.randint(1, 2))
        forced = {("and", "yes"): [one, other], ("or", "no"): []}.get(
            (joint, answer), [rng.choice((one, other))]
        )
        scene = draw_scene(rng, split, forced)
        if scene is None:
            return None
        has = [bool(scene.matching(wish)) for wish in (one, other)]
        found = all(has) if joint == "and" else any(has)
        prompt = f"is there {article(describe(one))} {joint} {article(describe(other))}?"
        parts = (joint, one, other)
    return Question(scene, prompt, answer, "logical", parts) if found == (answer == "yes") else None


KINDS: dict[str, Callable[[Random, str, Random], Question | None]] = {
    "query": query,
    "count": count,
    "compare": compare,
    "relate": relate,
    "verify": verify,
    "logical": logical,
}
