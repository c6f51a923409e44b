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
    """v2_OpenEnded_mscoco_PART_questions.json, v2_mscoco_PART_annotations.json, PART/COCO_PART_ID.jpg, with
    PART train2014 or val2014. A question without ten answers is for training only: VQA accuracy needs ten.
    The questions of test2015 and test-dev2015 have no annotations, and photographs in test2015/.
    """
    year = "2014" if answered("vqav2", split) else "2015"
    photos = "test2015" if split == "test-dev" else split + year
    questions = json_list(folder / f"v2_OpenEnded_mscoco_{split}{year}_questions.json", "questions")
    by_id: dict[str, Any] = {}
    if answered("vqav2", split):
        annotations = json_list(folder / f"v2_mscoco_{split}{year}_annotations.json", "annotations")
        by_id |= parsed(annotations, lambda entry, name: (field(entry, "question_id", name), entry), skipped)

    def question(entry: Any, name: str) -> Asked:
        id, text, image = (field(entry, key, name) for key in ("question_id", "question", "image_id"))
        if not image.isdecimal():
            raise BadExample("bad image_id", name)
        places = (folder / photos / f"COCO_{photos}_{int(image):012d}.jpg",)
        if not answered("vqav2", split):
            return Asked(id, places, text, ())
        if id not in by_id:
            raise BadExample("question without annotation", name)
        given = by_id[id].get("answers")
        if not isinstance(given, list) or not given:
            raise BadExample("question without answers", name)
        answers = tuple(field(one, "answer", name) for one in given)
        kind = str(by_id[id].get("answer_type", ""))
        return Asked(id, places, text, answers, kind)

    return parsed(questions, question, skipped)


def gqa(folder: Path, split: str, skipped: Skipped) -> Iterator[Asked]:
    """SPLIT_balanced_questions.json, the questions that are marked balanced; images/ID.jpg or ID.jpg. Of the
    split "submission", what GQA's server wants answers to, submission_all_questions.json with all of them.
    """
    wanted = "all" if split == "submission" else "balanced"
    path = folder / f"{split}_{wanted}_questions.json"
    entries = ((f"{path}: {id}", (id, entry)) for id, entry in read_json(path).items())

    def question(item: tuple[str, Any], name: str) -> Asked | None:
        id, entry = utf8(item[0], name), item[1]
        if wanted == "balanced" and isinstance(entry, dict) and not entry.get("isBalanced", True):
            return None
        image, text = (field(entry, key, name) for key in ("imageId", "question"))
        answers = (field(entry, "answer", name),) if answered("gqa", split) else ()
        file = f"{file_name(image, name)}.jpg"
        types = entry.get("types")
        group = str(types.get("structural", "")) if isinstance(types, dict) else ""
        return Asked(id, (folder / "images" / file, folder / file), text, answers, group)

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
        except (ValueError, RecursionError) as error:
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
    "vqav2": (vqav2, "vqa", ("train", "val", "test", "test-dev")),
    "gqa": (gqa, "exact", ("train", "val", "testdev", "test", "submission")),
    "snli_ve": (snli_ve, "label", ("train", "val", "test")),
}
UNANSWERED = {"vqav2": ("test", "test-dev"), "gqa": ("test", "submission")}  # published as questions alone


def answered(kind: str, split: str) -> bool:
    """Whether answers are published to the split's questions."""
    return split not in UNANSWERED.get(kind, ())


def open_source(spec: SourceSpec, split: str, *, strict: bool = False, **shares: Any) -> RecordSource:
    """As in `jair.data.sources.open_source`; a split is what its format calls so."""
    read, metric, splits = FORMATS[spec.kind]
    if split not in splits:
        raise ValueError(f"split: expected {' or '.join(map(repr, splits))} of {spec.kind}, got {split!r}")
    skipped = Skipped()
    asked = list(read(Path(spec.path), split, skipped))
    if strict and skipped.total:
        raise ValueError(f"{spec.name}{skipped.first}")
    shares["answered"] = answered(spec.kind, split)
    shares |= {"scorable": _scorable} if metric == "vqa" and shares["answered"] else {}
    return RecordSource(spec.name, metric, asked, make, strict=strict, skipped=skipped, **shares)


def _scorable(asked: Asked) -> None:
    if len(asked.answers) != ANSWERS:
        raise BadExample(f"not {ANSWERS} answers", f"question {asked.id}")


def make(asked: Asked, generator: np.random.Generator) -> Example:
    """An example; of several answers one is drawn, as often as people gave it, of none it is empty.

    Raises:
        BadExample: the photograph is missing or broken.
    """
    path = next((path for path in asked.images if os.path.exists(path)), asked.images[0])
    answer = asked.answers[int(generator.integers(len(asked.answers)))] if asked.answers else ""
    return Example(read_image(path), asked.prompt, answer, asked.answers, asked.id, asked.group)
