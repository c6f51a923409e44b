"""The data set scenes: right answers, balance, disjoint splits, pictures, captions, streams."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import combinations
from random import Random

import numpy as np
import pytest

pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("transformers", reason="the extra 'train' is not installed")

from jair.data.baselines import bag_of_image, blind
from jair.data.examples import Example
from jair.data.scenes.captions import about_objects, captions, false_caption
from jair.data.scenes.questions import KINDS, MOST_COUNTED, Question
from jair.data.scenes.render import COLOURS, render
from jair.data.scenes.source import ScenesSource
from jair.data.scenes.world import APART, ATTRIBUTES, HELD_OUT, RADIUS, SPLITS, Scene, Thing

TRIED = 150


def questions(kind: str, split: str = "train", count: int = TRIED) -> list[Question]:
    source = ScenesSource(split, task=kind)
    return [source.question(i) for i in range(count)]


def are(thing: Thing, wish: dict[str, str]) -> bool:
    has = {"size": thing.size, "texture": thing.texture, "colour": thing.colour, "shape": thing.shape}
    return all(has[name] == value for name, value in wish.items())


def the(scene: Scene, wish: dict[str, str]) -> Thing:
    (thing,) = (t for t in scene.things if are(t, wish))
    return thing


def beyond(direction: str, a: Thing, b: Thing) -> bool:
    return {
        "to the left of": a.x < b.x,
        "to the right of": a.x > b.x,
        "above": a.y < b.y,
        "below": a.y > b.y,
    }[direction]


def answer(question: Question) -> str:
    """What is right, from the scene and the question's parts alone."""
    scene, parts = question.scene, question.parts

    def some(wish: dict[str, str]) -> int:
        return sum(are(t, wish) for t in scene.things)

    def yes(true: object) -> str:
        return "yes" if true else "no"

    if question.kind == "query":
        return getattr(the(scene, parts[1]), parts[0])
    if question.kind == "count":
        return str(some(parts[0]))
    if question.kind == "verify":
        return yes(some(parts[0]))
    if question.kind == "compare":
        if parts[0] == "more":
            return yes(some(parts[1]) > some(parts[2]))
        return yes(getattr(the(scene, parts[2]), parts[1]) == getattr(the(scene, parts[3]), parts[1]))
    if question.kind == "relate":
        if parts[0] == "is":
            return yes(beyond(parts[1], the(scene, parts[2]), the(scene, parts[3])))
        base = the(scene, parts[3])
        (found,) = (t for t in scene.things if t is not base and beyond(parts[2], t, base))
        return getattr(found, parts[1])
    if parts[0] == "not":
        return yes(any(are(t, parts[1]) and not are(t, parts[2]) for t in scene.things))
    has = [some(parts[1]) > 0, some(parts[2]) > 0]
    return yes(all(has) if parts[0] == "and" else any(has))


@pytest.mark.parametrize("split", ["train", "compositional"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_answers_are_right(kind: str, split: str) -> None:
    for question in questions(kind, split):
        assert question.kind == kind
        assert question.answer == answer(question), question.prompt
        assert question.prompt.endswith("?")


@pytest.mark.parametrize("kind", list(KINDS))
def test_answers_are_balanced(kind: str) -> None:
    counts = Counter(question.answer for question in questions(kind, count=900))
    if kind == "count":
        assert set(counts) == {str(n) for n in range(MOST_COUNTED + 1)}
        assert max(counts.values()) < 1.35 * 900 / (MOST_COUNTED + 1)
    elif kind == "query":
        of = {value: len(values) for values in ATTRIBUTES.values() for value in values}
        for value, count in counts.items():
            assert 0.4 < count * 4 * of[value] / 900 < 1.8, value
    else:
        told = counts["yes"] + counts["no"]
        assert 0.43 < counts["yes"] / told < 0.57


def test_guessing_from_the_question_alone_fails() -> None:
    """The most frequent answer of each question, or of its first words, over 6000 examples."""
    source = ScenesSource("train")
    by_prompt: dict[str, Counter[str]] = defaultdict(Counter)
    for i in range(6000):
        question = source.question(i)
        for key in (question.prompt, " ".join(question.prompt.split()[:2])):
            by_prompt[key][question.answer] += 1
    held = ScenesSource("val")
    right = 0
    for i in range(900):
        question = held.question(i)
        words = " ".join(question.prompt.split()[:2])
        guess = (by_prompt.get(question.prompt) or by_prompt[words]).most_common(1)[0][0]
        right += guess == question.answer
    assert right / 900 < 0.45


def test_splits_have_no_scene_in_common() -> None:
    seen: dict[str, set[Scene]] = {}
    for split in SPLITS:
        source = ScenesSource(split)
        seen[split] = {source.question(i).scene for i in range(200)}
        assert {scene.split for scene in seen[split]} == {split}
        pairs = [{(t.colour, t.shape) for t in scene.things} for scene in seen[split]]
        assert all(bool(pair & HELD_OUT) == (split == "compositional") for pair in pairs)
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


def test_objects_are_apart_and_within_the_picture() -> None:
    for question in questions("relate"):
        for t in question.scene.things:
            r = RADIUS[t.size]
            assert r < t.x < 1 - r
            assert r < t.y < 1 - r
        for a, b in combinations(question.scene.things, 2):
            distance = np.hypot(a.x - b.x, a.y - b.y)
            assert distance >= APART * (RADIUS[a.size] + RADIUS[b.size]) - 1e-9


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
@pytest.mark.parametrize("colour", ATTRIBUTES["colour"])
def test_a_picture_shows_what_is_there(shape: str, colour: str) -> None:
    for size in ("small", "large"):
        scene = Scene((Thing(size, "plain", colour, shape, 0.5, 0.5),), 0.2)
        pixels = np.asarray(render(scene, 64)).astype(int)
        assert pixels.shape == (64, 64, 3)
        assert tuple(pixels[32, 32]) == COLOURS[colour]
        assert tuple(pixels[0, 0]) == (51, 51, 51)
        area = (np.abs(pixels - np.array(COLOURS[colour])).sum(-1) < 30).mean()
        inside = np.pi * RADIUS[size] ** 2
        assert 0.3 * inside < area < 1.1 * inside
    edge = np.asarray(render(scene, 64)).reshape(-1, 3)
    assert len({tuple(pixel) for pixel in edge}) > 2  # between object and background: anti-aliased


def test_textures_differ() -> None:
    plain, striped, dotted = (
        np.asarray(render(Scene((Thing("large", t, "white", "square", 0.5, 0.5),), 0.1), 64)).astype(int)
        for t in ATTRIBUTES["texture"]
    )
    assert plain.mean() > 1.15 * max(striped.mean(), dotted.mean())
    assert np.abs(striped - dotted).mean() > 5


def described(phrase: str) -> dict[str, str]:
    return {name: word for word in phrase.split() for name, values in ATTRIBUTES.items() if word in values}


def test_captions_are_true_and_false_ones_false() -> None:
    source = ScenesSource("train", task="caption")
    for i in range(100):
        rng = Random(i)
        scene = source.scene(rng)
        for caption in captions(scene, rng):
            for phrase in caption.replace(" and ", ", ").split(", "):
                wish = described(phrase)
                if " of " not in phrase and "above" not in phrase and "below" not in phrase:
                    assert any(are(t, wish) for t in scene.things), (caption, scene)
        wrong = false_caption(scene, rng)
        parts = wrong.replace(" and ", ", ")
        for way in (" to the left of ", " to the right of ", " above ", " below "):
            parts = parts.replace(way, ", ")
        wishes = [described(phrase) for phrase in parts.split(", ")]
        number = "objects" in wrong and f"{len(scene.things)}" not in wrong
        assert number or any(not any(are(t, wish) for t in scene.things) for wish in wishes), (wrong, scene)


def test_questions_about_objects_are_answered_in_order() -> None:
    ways = {"from left to right": (0, 1), "from right to left": (0, -1)}
    ways |= {"from top to bottom": (1, 1), "from bottom to top": (1, -1)}
    seen: set[str] = set()
    for i in range(300):
        rng = Random(i)
        scene = ScenesSource("train").scene(rng)
        prompt, answer = about_objects(scene, rng)
        listed = [described(phrase) for phrase in answer.split(", ")] if answer != "none" else []
        way = next((way for way in ways if way in prompt), None)
        if way is None:
            assert prompt == "what is in the picture?"
            wanted = sorted(f"{t.colour} {t.shape}" for t in scene.things)
            assert answer.split(", ") == wanted
            seen.add("all")
            continue
        axis, sign = ways[way]
        things = sorted(scene.things, key=lambda t: sign * (t.x, t.y)[axis])
        for shape in ATTRIBUTES["shape"]:
            prompt = prompt.replace(f"{shape}es", shape).replace(f"{shape}s ", f"{shape} ")
        wish = {} if prompt.startswith("what") else described(prompt)
        found = [t for t in things if are(t, wish)]
        assert len(listed) == len(found), (prompt, answer, scene)
        for said, thing in zip(listed, found, strict=True):
            assert are(thing, said | wish)
            assert (said | wish).keys() == ATTRIBUTES.keys()
        seen |= {way, *wish} | ({"none"} if answer == "none" else set())
    assert seen == {"all", "none", *ways, *ATTRIBUTES}


def test_a_stream_goes_on_where_it_was() -> None:
    whole = ScenesSource("train", seed=3, rank=1, world_size=2)
    expected = [whole.next() for _ in range(8)]
    first = ScenesSource("train", seed=3, rank=1, world_size=2)
    got = [first.next() for _ in range(3)]
    state = json.loads(json.dumps(first.state_dict()))
    second = ScenesSource("train", seed=3, rank=1, world_size=2)
    second.load_state_dict(state)
    got += [second.next() for _ in range(5)]
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.id, ours.prompt, ours.answer) == (theirs.id, theirs.prompt, theirs.answer)
        assert ours.image.tobytes() == theirs.image.tobytes()
    assert [example.id for example in expected[:3]] == ["train-3-1", "train-3-3", "train-3-5"]
    assert ScenesSource("train", seed=4).next().prompt != ScenesSource("train", seed=3).next().prompt


def test_every_task_has_an_answer() -> None:
    for task in ("completion", "masked", "matching", "objects", "caption"):
        for example in ScenesSource("val", task=task).evaluation(5):
            assert example.answer
            assert example.answer in example.answers
            assert example.group == task


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScenesSource("dev"), "split: expected 'train' or 'val' or .*, got 'dev'"),
        (lambda: ScenesSource("val", task="guess"), "task: expected 'questions' or .*, got 'guess'"),
    ],
)
def test_wrong_names(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_baselines_know_little() -> None:
    train, test = (list(ScenesSource(split).evaluation(n)) for split, n in (("train", 2500), ("val", 500)))
    assert 0.2 < blind(train, test) < 0.45
    assert 0.2 < bag_of_image(train, test) < 0.5
    known = [Example(e.image, e.prompt, "yes", ("yes",), e.id, e.group) for e in test]
    assert blind(known, known) == bag_of_image(known, known) == 1
    with pytest.raises(ValueError, match="test: expected at least one example, got none"):
        blind(train, [])
