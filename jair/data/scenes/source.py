"""The data set "scenes" as sources."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from jair.data import tasks
from jair.data.examples import Example
from jair.data.scenes.captions import about_objects, captions, false_caption
from jair.data.scenes.questions import KINDS, Question
from jair.data.scenes.render import render
from jair.data.scenes.world import Scene, check_split, draw_scene
from jair.data.sources import CAPTION_TASKS, SCENE_TASKS, Skipped, SourceSpec
from jair_kernels import _checks as check

SIZE = {"train": 1_000_000}  # a convention: the stream has no end
EVALUATED = 10_000


class ScenesSource:
    """Example i of a split is a function of (split, seed, i) alone; ranks take every world_size-th.

    Args:
        split: "train", "val", "test" or "compositional"; no two have a scene in common. task: "questions"
            (all kinds in turn), one kind of question, or a task of captions. seed, rank, world_size: as in
            `open_source`. image_size: side of the pictures.

    Raises:
        ValueError: an unknown split or task.
    """

    def __init__(
        self,
        split: str,
        *,
        task: str | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        image_size: int = 64,
    ) -> None:
        check_split(split)
        self.task = "questions" if task is None else task
        check.choice("task", self.task, (*SCENE_TASKS, *CAPTION_TASKS))
        self.split, self.seed, self.image_size = split, seed, image_size
        self.name = f"scenes/{self.task}"
        self.metric, self.answered = "caption" if self.task in ("caption", "completion") else "exact", True
        self.size = SIZE.get(split, EVALUATED)
        self.skipped = Skipped()
        self._index, self._step = rank, world_size

    def next(self) -> Example:
        """As in `Source`."""
        self._index += self._step
        return self.example(self._index - self._step)

    def state_dict(self) -> dict[str, Any]:
        """As in `Source`."""
        return {"index": self._index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `Source`."""
        self._index = int(state["index"])

    def evaluation(
        self, limit: int | None = None, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Example]:
        """As in `Source`; without a limit EVALUATED examples."""
        for index in range(rank, EVALUATED if limit is None else limit, world_size):
            yield self.example(index)

    def example(self, index: int) -> Example:
        """Example number `index`."""
        rng = Random(f"{self.split}/{self.seed}/{self.task}/{index}")
        name = f"{self.split}-{self.seed}-{index}"
        if self.task in CAPTION_TASKS:
            scene = self.scene(rng)
            if self.task == "objects":
                prompt, answer = about_objects(scene, rng)
                answers: tuple[str, ...] = (answer,)
            else:
                true = captions(scene, rng)
                prompt, answer = tasks.make(self.task, true, false_caption(scene, rng), (), rng)
                answers = tuple(true) if self.task == "caption" else (answer,)
            return Example(render(scene, self.image_size), prompt, answer, answers, name, self.task)
        question = self.question(index, rng)
        picture = render(question.scene, self.image_size)
        return Example(picture, question.prompt, question.answer, (question.answer,), name, question.kind)

    def question(self, index: int, rng: Random | None = None) -> Question:
        """Question number `index` without its picture."""
        rng = Random(f"{self.split}/{self.seed}/{self.task}/{index}") if rng is None else rng
        kinds = list(KINDS)
        make = KINDS[kinds[index % len(kinds)] if self.task == "questions" else self.task]
        fate = rng.random()
        while True:
            question = make(rng, self.split, Random(fate))
            if question is not None:
                return question

    def scene(self, rng: Random) -> Scene:
        """A scene of the split."""
        while True:
            scene = draw_scene(rng, self.split)
            if scene is not None:
                return scene


def open_source(
    spec: SourceSpec,
    split: str,
    *,
    seed: int = 0,
    strict: bool = False,
    rank: int = 0,
    world_size: int = 1,
    image_size: int = 64,
) -> ScenesSource:
    """As in `jair.data.sources.open_source`; nothing can be missing here, strict or not."""
    return ScenesSource(
        split, task=spec.chosen_task, seed=seed, rank=rank, world_size=world_size, image_size=image_size
    )
