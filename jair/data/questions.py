"""VQAv2, GQA and SNLI-VE from their published files: questions about photographs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jair.data.examples import Example
from jair.data.images import read_image
from jair.data.sources import BadExample, RecordSource, Skipped, SourceSpec

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
    SPLIT2014/COCO_SPLIT2014_ID.jpg. Without annotations (the split "test") there are no answers.
    """
    part = {"train": "train2014", "val": "val2014"}[split]
    questions = read_json(folder / f"v2_OpenEnded_mscoco_{part}_questions.json")["questions"]
    annotations = read_json(folder / f"v2_mscoco_{part}_annotations.json")["annotations"]
    by_id = {entry["question_id"]: entry for entry in annotations}
    for entry in questions:
        answer = by_id.get(entry["question_id"])
        if answer is None:
            skipped.add("question without annotation", str(entry["question_id"]))
            continue
        image = folder / part / f"COCO_{part}_{int(entry['image_id']):012d}.jpg"
        answers = tuple(str(one["answer"]) for one in answer["answers"])
        kind = str(answer.get("answer_type", ""))
        yield Asked(str(entry["question_id"]), (image,), entry["question"], answers, kind)


def gqa(folder: Path, split: str, skipped: Skipped) -> Iterator[Asked]:
    """SPLIT_balanced_questions.json, the questions that are marked balanced; images/ID.jpg or ID.jpg."""
    for id, entry in read_json(folder / f"{split}_balanced_questions.json").items():
        if entry.get("isBalanced", True):
            name = f"{_name(entry['imageId'])}.jpg"
            group = str((entry.get("types") or {}).get("structural", ""))
            images = (folder / "images" / name, folder / name)
            yield Asked(str(id), images, entry["question"], (str(entry["answer"]),), group)


def snli_ve(folder: Path, split: str, skipped: Skipped) -> Iterator[Asked]:
    """snli_ve_SPLIT.jsonl ("val" may be called "dev"); flickr30k_images/ID.jpg or ID.jpg."""
    names = [f"snli_ve_{name}.jsonl" for name in ((split, "dev") if split == "val" else (split,))]
    path = next((folder / name for name in names if (folder / name).exists()), folder / names[0])
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            image, sentence, label = entry["Flikr30kID"], entry["sentence2"], entry["gold_label"]
        except (json.JSONDecodeError, KeyError, TypeError):
            skipped.add("bad JSON line", f"{path}:{number}")
            continue
        if label not in LABELS:
            skipped.add("example without a label", f"{path}:{number}")
            continue
        name = f"{_name(str(image).removesuffix('.jpg'))}.jpg"
        id = str(entry.get("pairID", number))
        yield Asked(
            id, (folder / "flickr30k_images" / name, folder / name), f"does it follow: {sentence}", (label,)
        )


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
        reason, names = next(iter(skipped.names.items()))
        raise ValueError(f"{spec.name}: {names[0]}: {reason}")
    return RecordSource(spec.name, metric, asked, make, strict=strict, skipped=skipped, **shares)


def make(asked: Asked, generator: np.random.Generator) -> Example:
    """An example; of several answers one is drawn, as often as people gave it.

    Raises:
        BadExample: the photograph is missing or broken.
    """
    path = next((path for path in asked.images if path.exists()), asked.images[0])
    answer = asked.answers[int(generator.integers(len(asked.answers)))]
    return Example(read_image(path), asked.prompt, answer, asked.answers, asked.id, asked.group)


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        OSError: it is missing. ValueError: it is broken, by name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error


def _name(text: Any) -> str:
    """A file's name from a data set, which must not lead elsewhere."""
    name = str(text)
    if not name or Path(name).name != name:
        raise BadExample("bad file name", name)
    return name
