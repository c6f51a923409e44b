"""VQAv2, GQA and SNLI-VE from their published files: questions about photographs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jair.data.examples import Example
from jair.data.images import read_image
from jair.data.records import field, file_name, json_list, lines, parsed, read_json, utf8
from jair.data.sources import BadExample, RecordSource, Skipped, SourceSpec
from jair.metrics.vqa import ANSWERS

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Asked:
    """A question as its file has it; `images` are places where the photograph may be."""

    id: str
    images: tuple[Path, ...]
    prompt: str
    answers: tuple[str, ...]
    group: str = ""


def vqav2(folder: Path, split: str, skipped: Skipped) -> Iterator[Asked]:
    """v2_OpenEnded_mscoco_SPLIT2014_questions.json, v2_mscoco_SPLIT2014_annotations.json,
    SPLIT2014/COCO_SPLIT2014_ID.jpg. The published test questions have no annotations and are not read. A
    question without ten answers is for training only: VQA accuracy needs ten.
    """
    part = {"train": "train2014", "val": "val2014"}[split]
    questions = json_list(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", "questions")
    annotations = json_list(folder / f"v2_mscoco_{part}_annotations.json", "annotations")
    by_id = dict(parsed(annotations, lambda entry, name: (field(entry, "question_id", name), entry), skipped))

    def question(entry: Any, name: str) -> Asked:
        id, text, image = (field(entry, key, name) for key in ("question_id", "question", "image_id"))
        if not image.isdecimal():
            raise BadExample("bad image_id", name)
        if id not in by_id:
            raise BadExample("question without annotation", name)
        given = by_id[id].get("answers")
        if not isinstance(given, list) or not given:
            raise BadExample("question without answers", name)
        answers = tuple(field(one, "answer", name) for one in given)
        kind = str(by_id[id].get("answer_type", ""))
        return Asked(id, (folder / part / f"COCO_{part}_{int(image):012d}.jpg",), text, answers, kind)

    return parsed(questions, question, skipped)


def gqa(folder: Path, split: str, skipped: Skipped) -> Iterator[Asked]:
    """SPLIT_balanced_questions.json, the questions that are marked balanced; images/ID.jpg or ID.jpg."""
    path = folder / f"{split}_balanced_questions.json"
    entries = ((f"{path}: {id}", (id, entry)) for id, entry in read_json(path).items())

    def question(item: tuple[str, Any], name: str) -> Asked | None:
        id, entry = utf8(item[0], name), item[1]
        if isinstance(entry, dict) and not entry.get("isBalanced", True):
            return None
        image, text, answer = (field(entry, key, name) for key in ("imageId", "question", "answer"))
        file = f"{file_name(image, name)}.jpg"
        types = entry.get("types")
        group = str(types.get("structural", "")) if isinstance(types, dict) else ""
        return Asked(id, (folder / "images" / file, folder / file), text, (answer,), group)

    return parsed(entries, question, skipped)


def snli_ve(folder: Path, split: str, skipped: Skipped) -> Iterator[Asked]:
    """snli_ve_SPLIT.jsonl ("val" may be called "dev"); flickr30k_images/ID.jpg or ID.jpg."""
    names = [f"snli_ve_{name}.jsonl" for name in ((split, "dev") if split == "val" else (split,))]
    path = next((folder / name for name in names if (folder / name).exists()), folder / names[0])

    def question(line: tuple[int, str], name: str) -> Asked | None:
        if not line[1].strip():
            return None
        try:
            entry = json.loads(line[1])
        except ValueError as error:
            raise BadExample("bad JSON line", name) from error
        image, sentence, label = (
            field(entry, key, name) for key in ("Flikr30kID", "sentence2", "gold_label")
        )
        if label not in LABELS:
            raise BadExample("example without a label", name)
        file = f"{file_name(image.removesuffix('.jpg'), name)}.jpg"
        images = (folder / "flickr30k_images" / file, folder / file)
        id = str(line[0]) if entry.get("pairID") is None else field(entry, "pairID", name)
        return Asked(id, images, f"does it follow: {sentence}", (label,))

    return parsed(lines(path, skipped), question, skipped)


FORMATS: dict[str, tuple[Callable[[Path, str, Skipped], Iterator[Asked]], str, tuple[str, ...]]] = {
    "vqav2": (vqav2, "vqa", ("train", "val")),
    "gqa": (gqa, "exact", ("train", "val", "testdev")),
    "snli_ve": (snli_ve, "label", ("train", "val", "test")),
}


def open_source(spec: SourceSpec, split: str, *, strict: bool = False, **shares: Any) -> RecordSource:
    """As in `jair.data.sources.open_source`; a split is what its format calls so."""
    read, metric, splits = FORMATS[spec.kind]
    if split not in splits:
        raise ValueError(f"split: expected {' or '.join(map(repr, splits))} of {spec.kind}, got {split!r}")
    skipped = Skipped()
    asked = list(read(Path(spec.path), split, skipped))
    if strict and skipped.total:
        raise ValueError(f"{spec.name}{skipped.first}")
    shares |= {"scorable": _scorable} if metric == "vqa" else {}
    return RecordSource(spec.name, metric, asked, make, strict=strict, skipped=skipped, **shares)


def _scorable(asked: Asked) -> None:
    if len(asked.answers) != ANSWERS:
        raise BadExample(f"not {ANSWERS} answers", f"question {asked.id}")


def make(asked: Asked, generator: np.random.Generator) -> Example:
    """An example; of several answers one is drawn, as often as people gave it.

    Raises:
        BadExample: the photograph is missing or broken.
    """
    path = next((path for path in asked.images if os.path.exists(path)), asked.images[0])
    answer = asked.answers[int(generator.integers(len(asked.answers)))]
    return Example(read_image(path), asked.prompt, answer, asked.answers, asked.id, asked.group)
