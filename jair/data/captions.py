"""Captioned photographs: COCO captions, CC3M and CC12M; each caption task over them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from jair.data import tasks
from jair.data.examples import Example
from jair.data.images import read_image
from jair.data.records import entries_of, field, file_name, lines, parsed, read_json
from jair.data.sources import BadExample, RecordSource, Skipped, SourceSpec

POOL = 16  # captions among which the one most like the true one is the false one


@dataclass(frozen=True)
class Captioned:
    """A photograph's file and its captions."""

    id: str
    image: Path
    captions: tuple[str, ...]


def coco(folder: Path, split: str, skipped: Skipped) -> list[Captioned]:
    """captions_SPLIT2014.json, SPLIT2014/FILE_NAME."""
    part = f"{split}2014"
    path = folder / f"captions_{part}.json"
    document = read_json(path)

    def image(entry: Any, name: str) -> tuple[str, str]:
        file = Path(field(entry, "file_name", name)).name
        return field(entry, "id", name), file_name(file, name)

    files = dict(parsed(entries_of(document, path, "images"), image, skipped))

    def caption(entry: Any, name: str) -> tuple[str, str]:
        id = field(entry, "image_id", name)
        if id not in files:
            raise BadExample("caption without image", name)
        return id, one_line(field(entry, "caption", name), name)

    captions: dict[str, list[str]] = defaultdict(list)
    for id, text in parsed(entries_of(document, path, "annotations"), caption, skipped):
        captions[id].append(text)
    return [Captioned(id, folder / part / files[id], tuple(texts)) for id, texts in captions.items()]


def conceptual(folder: Path, split: str, skipped: Skipped) -> list[Captioned]:
    """SPLIT.tsv, rows of caption<TAB>url (CC3M) or url<TAB>caption (CC12M), without a header, and the
    photograph of row i, counted from 0, as SPLIT/i.jpg with nine digits (our decision: rows have no names).
    """

    def row(line: tuple[int, str], name: str) -> Captioned:
        number, cells = line[0] - 1, line[1].split("\t")
        urls = [cell.startswith(("http://", "https://")) for cell in cells]
        if len(cells) != 2 or sum(urls) != 1:
            raise BadExample("bad row", name)
        caption = cells[urls.index(False)]
        one_line(caption, name)
        return Captioned(str(number), folder / split / f"{number:09d}.jpg", (caption,))

    return list(parsed(lines(folder / f"{split}.tsv", skipped), row, skipped))


def one_line(text: str, name: str) -> str:
    """A caption with single spaces.

    Raises:
        BadExample: it is empty.
    """
    words = text.split()
    if not words:
        raise BadExample("empty caption", name)
    return " ".join(words)


FORMATS = {"coco_captions": (coco, ("train", "val")), "cc": (conceptual, ("train", "val"))}


def open_source(spec: SourceSpec, split: str, *, strict: bool = False, **shares: Any) -> RecordSource:
    """As in `jair.data.sources.open_source`."""
    read, splits = FORMATS[spec.kind]
    if split not in splits:
        raise ValueError(f"split: expected {' or '.join(map(repr, splits))} of {spec.kind}, got {split!r}")
    skipped = Skipped()
    found = read(Path(spec.path), split, skipped)
    if strict and skipped.total:
        raise ValueError(f"{spec.name}{skipped.first}")
    texts = [record.captions[0] for record in found]

    def make(record: Captioned, generator: np.random.Generator) -> Example:
        rng = Random(int(generator.integers(2**62)))
        pool = [texts[rng.randrange(len(texts))] for _ in range(POOL)]
        return captioned(spec.chosen_task, read_image(record.image), record.captions, pool, record.id, rng)

    metric = "caption" if spec.chosen_task in ("caption", "completion") else "exact"
    return RecordSource(spec.name, metric, found, make, strict=strict, skipped=skipped, **shares)


def captioned(
    task: str, image: Any, captions: Sequence[str], pool: Sequence[str], id: str, rng: Random
) -> Example:
    """An example of a caption task; of the pool, other images' captions, the most similar one is false."""
    wrong = most_similar(captions[0], [text for text in pool if text not in captions])
    # Without boxes, the nouns are not known: what all captions have in common stands for objects.
    prompt, answer = tasks.make(task, captions, wrong, common_words(captions), rng)
    answers = tuple(captions) if task == "caption" else (answer,)
    return Example(image, prompt, answer, answers, id, task)


def most_similar(text: str, pool: Sequence[str]) -> str:
    """The text of the pool that shares the largest part of its words with this one."""
    words = set(text.lower().split())

    def overlap(other: str) -> float:
        theirs = set(other.lower().split())
        return len(words & theirs) / max(1, len(words | theirs))

    return max(pool, key=overlap, default="a blank picture")


def common_words(captions: Sequence[str]) -> list[str]:
    """Words of four letters or more that most captions have, in the order of the first."""
    words = [[word.strip(".,").lower() for word in text.split()] for text in captions]
    first = list(dict.fromkeys(words[0]))
    shared = [w for w in first if len(w) >= 4 and 2 * sum(w in row for row in words) > len(words)]
    return shared or first[:1]
