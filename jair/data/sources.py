"""Sources: a data set x a task, named on the command line as KIND:PATH[,task=...][,weight=...]."""

from __future__ import annotations

import importlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from jair.data.examples import Example
from jair_kernels import _checks as check

Record = TypeVar("Record")
NAMES_KEPT = 20  # of skipped files, for each reason


@dataclass
class Skipped:
    """What could not be read: how often for each reason, and the first names."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Over all reasons."""
        return sum(self.counts.values())

    @property
    def first(self) -> str:
        """ ": NAME: REASON" of one of them, "" if there is none."""
        return next((f": {names[0]}: {reason}" for reason, names in self.names.items()), "")

    def add(self, reason: str, name: str) -> None:
        """One more; the same name counts once for a reason while it is among the first."""
        name = name.encode(errors="backslashreplace").decode()  # or no log could be written
        names = self.names.setdefault(reason, [])
        if name in names:
            return
        self.counts[reason] += 1
        if len(names) < NAMES_KEPT:
            names.append(name)


class BadExample(ValueError):
    """An example that cannot be used: reason and the name of its file or line."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason, self.name = reason, name


class Source(Protocol):
    """An endless, resumable stream of examples in a seeded order."""

    name: str
    metric: str  # "vqa", "exact", "label" or "caption": how `jair eval` scores it
    answered: bool  # whether there is something to score: False of test questions published without answers
    size: int
    skipped: Skipped

    def next(self) -> Example:
        """The next example; each epoch in another order, each rank its own share."""

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, in types that JSON has."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""

    def evaluation(
        self, limit: int | None = None, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Example]:
        """Every example once, in a fixed order: all of them, or of world_size shares that of a rank."""


class RecordSource:
    """A source over a list of records in memory, from which examples are made when they are asked for.

    Args:
        name, metric: as in `Source`. records: what `make` turns into examples.
        make: (record, generator) -> Example; raises BadExample for what cannot be used. The generator is a
            function of seed, epoch and record alone.
        scorable: raises BadExample for a record that `evaluation` cannot give, though one can train on it.
        answered: as in `Source`.
        strict: raise for a bad example instead of skipping it.

    Raises:
        ValueError: there are no records.
    """

    def __init__(
        self,
        name: str,
        metric: str,
        records: list[Record],
        make: Callable[[Record, np.random.Generator], Example],
        *,
        seed: int,
        strict: bool = False,
        rank: int = 0,
        world_size: int = 1,
        skipped: Skipped | None = None,
        scorable: Callable[[Record], None] | None = None,
        answered: bool = True,
    ) -> None:
        self.skipped = Skipped() if skipped is None else skipped
        if not records:
            got = f"none ({self.skipped.total} skipped{self.skipped.first})"
            raise ValueError(f"{name}: expected at least one example, got {got}")
        self.name, self.metric, self.size, self.answered = name, metric, len(records), answered
        self._records, self._make, self._scorable = records, make, scorable
        self._seed, self._strict = seed, strict
        self._rank, self._world_size = rank, world_size
        self._epoch, self._position, self._order = 0, 0, None

    _order: np.ndarray[Any, Any] | None

    def next(self) -> Example:
        """As in `Source`.

        Raises:
            ValueError: no example of a whole epoch can be used, or strict and this one cannot.
        """
        for _ in range(2 * len(self._records) + self._world_size):
            index = self._next_index()
            try:
                return self._make(
                    self._records[index], np.random.default_rng([self._seed, self._epoch, index])
                )
            except BadExample as bad:
                self._skip(bad)
        got = f"none in a whole epoch{self.skipped.first}"
        raise ValueError(f"{self.name}: expected examples that can be read, got {got}")

    def _next_index(self) -> int:
        while True:
            if self._order is None:
                generator = np.random.default_rng([self._seed, self._epoch])
                # The ranks' shares of an epoch are equal: the last ones take from the epoch's beginning.
                share = math.ceil(len(self._records) / self._world_size)
                order = generator.permutation(len(self._records))
                self._order = np.resize(order, share * self._world_size)[self._rank :: self._world_size]
            if self._position < len(self._order):
                self._position += 1
                return int(self._order[self._position - 1])
            self._epoch, self._position, self._order = self._epoch + 1, 0, None

    def _skip(self, bad: BadExample) -> None:
        if self._strict:
            raise ValueError(f"{self.name}: {bad}") from bad
        self.skipped.add(bad.reason, bad.name)

    def state_dict(self) -> dict[str, Any]:
        """As in `Source`."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `Source`."""
        self._epoch, self._position, self._order = int(state["epoch"]), int(state["position"]), None

    def evaluation(
        self, limit: int | None = None, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Example]:
        """As in `Source`; what cannot be used is skipped, or an error if strict."""
        count = len(self._records) if limit is None else min(limit, len(self._records))
        for index in range(rank, count, world_size):
            try:
                if self._scorable is not None:
                    self._scorable(self._records[index])
                yield self._make(self._records[index], np.random.default_rng([self._seed, index]))
            except BadExample as bad:
                self._skip(bad)


# Module and function that open each kind, and the tasks it allows: the first is the default.
CAPTION_TASKS = ("caption", "completion", "masked", "matching", "objects")
SCENE_TASKS = ("questions", "query", "count", "compare", "relate", "verify", "logical")
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "scenes": ("jair.data.scenes.source", (*SCENE_TASKS, *CAPTION_TASKS)),
    "vqav2": ("jair.data.questions", ("questions",)),
    "gqa": ("jair.data.questions", ("questions",)),
    "snli_ve": ("jair.data.questions", ("questions",)),
    "coco_captions": ("jair.data.captions", CAPTION_TASKS),
    "cc": ("jair.data.captions", CAPTION_TASKS),
    "webdataset": ("jair.data.shards", CAPTION_TASKS),
}


@dataclass(frozen=True)
class SourceSpec:
    """A source as the command line names it; weight multiplies its size for sampling by size, label tells it
    from others of its kind and task.
    """

    kind: str
    path: str = ""
    task: str | None = None
    weight: float = 1.0
    label: str = ""

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """From KIND:PATH[,task=...][,weight=...]; of "scenes" the PATH is empty.

        Raises:
            ValueError: an unknown kind, option or task, a missing path, or a weight that is not positive.
        """
        kind, _, rest = text.partition(":")
        path, *options = rest.split(",")
        if "," in kind:  # scenes,task=query
            kind, *options = kind.split(",")
        check.choice("source", kind, tuple(KINDS))
        values: dict[str, str] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if key not in ("task", "weight") or not equals:
                raise ValueError(
                    f"source: expected options task=... or weight=..., got {option!r} in {text!r}"
                )
            values[key] = value
        if (kind == "scenes") == bool(path):
            wanted = "no path" if kind == "scenes" else "a path"
            raise ValueError(f"source: expected {wanted} after {kind!r}, got {path!r}")
        if "task" in values:
            check.choice("task", values["task"], KINDS[kind][1])
        try:
            weight = float(values.get("weight", 1))
        except ValueError:
            raise ValueError(f"weight: expected a number, got {values['weight']!r}") from None
        check.positive("weight", weight)
        return cls(kind, path, values.get("task"), weight)

    @classmethod
    def parse_all(cls, texts: Iterable[str]) -> list[SourceSpec]:
        """As `parse`, the sources of one run: where several paths have a kind and task in common, each gets
        the part of its path that differs as label. The same path twice keeps one name.
        """
        specs = [cls.parse(text) for text in texts]
        paths: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for spec in specs:
            paths[spec.name].add(Path(spec.path).parts)
        return [replace(spec, label=_apart(Path(spec.path).parts, paths[spec.name])) for spec in specs]

    @property
    def chosen_task(self) -> str:
        """The task, or the kind's own."""
        return self.task or KINDS[self.kind][1][0]

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self.kind}/{self.chosen_task}" + (f":{self.label}" if self.label else "")


def _apart(path: tuple[str, ...], paths: set[tuple[str, ...]]) -> str:
    """The shortest end of a path that no other has, without the parts that all end with."""
    if len(paths) == 1:
        return ""
    shortest = min(map(len, paths))
    same = next((n for n in range(shortest - 1) if len({p[-1 - n] for p in paths}) > 1), max(0, shortest - 1))
    heads = [p[: len(p) - same] for p in paths]
    length = next(n for n in count(1) if len({head[-n:] for head in heads}) == len(heads))
    return str(Path(*path[: len(path) - same][-length:]))


def open_source(
    spec: SourceSpec,
    split: str,
    *,
    seed: int = 0,
    strict: bool = False,
    rank: int = 0,
    world_size: int = 1,
    image_size: int = 64,
) -> Source:
    """The source that a spec names.

    Args:
        split: "train", "val", "test" or another that the kind has. seed: of its order.
        strict: raise for what cannot be read instead of skipping it. rank, world_size: share of a process.
        image_size: of pictures that are drawn; others keep theirs.

    Raises:
        ValueError, OSError: the path, its files or the split do not fit.
    """
    opener = importlib.import_module(KINDS[spec.kind][0]).open_source
    options = {"seed": seed, "strict": strict, "rank": rank, "world_size": world_size}
    if spec.kind == "scenes":
        options |= {"image_size": image_size}
    source: Source = opener(spec, split, **options)
    return source
