"""The mixture of the sampling experiment: an easy, a hard, a noisy and a tiny source, drawn from `scenes`.

The first two count objects and list them in an order. The noisy one is a folder as Conceptual Captions
publish it, in which half of the captions are another picture's; the tiny one is a folder as COCO captions
come, of a few hundred pictures. The validation pictures of both are new and their captions right: what counts
is what has been learned, not the noise.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from jair._files import write_text
from jair.data.scenes.captions import captions
from jair.data.scenes.render import render
from jair.data.scenes.source import ScenesSource

NOISY, TINY, VALIDATION = 20_000, 300, 600  # pictures
WRONG = 0.5  # of the noisy source's captions
Pictures = list[list[str]]  # of each picture, its captions


def sources(folder: Path) -> dict[str, str]:
    """What each part of the mixture is called, and how `jair train` names it."""
    return {
        "easy": "scenes,task=count",
        "hard": "scenes,task=objects",
        "noisy": f"cc:{folder / 'noisy'},task=masked",
        "tiny": f"coco_captions:{folder / 'tiny'},task=matching",
    }


def write(folder: Path) -> None:
    """Draw both folders, unless they are there."""
    if not (folder / "noisy" / "train.tsv").exists():
        _conceptual(folder / "noisy", "val", VALIDATION, 0.0)
        _conceptual(folder / "noisy", "train", NOISY, WRONG)
    if not (folder / "tiny" / "captions_train2014.json").exists():
        _coco(folder / "tiny", "val", VALIDATION)
        _coco(folder / "tiny", "train", TINY)


def _conceptual(folder: Path, split: str, count: int, wrong: float) -> None:
    rng = Random(f"noisy/{split}")
    pictures = _draw(rng, split, [folder / split / f"{i:09d}.jpg" for i in range(count)])
    lines = []
    for right in pictures:
        shown = rng.choice(pictures) if rng.random() < wrong else right
        lines.append(f"{shown[0]}\thttp://localhost/\n")
    write_text(folder / f"{split}.tsv", "".join(lines))


def _coco(folder: Path, split: str, count: int) -> None:
    part = f"{split}2014"
    names = [f"COCO_{part}_{i:012d}.jpg" for i in range(count)]
    pictures = _draw(Random(f"tiny/{split}"), split, [folder / part / name for name in names])
    document = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 3 * i + j, "image_id": i, "caption": text}
            for i, texts in enumerate(pictures)
            for j, text in enumerate(texts)
        ],
    }
    write_text(folder / f"captions_{part}.json", json.dumps(document))


def _draw(rng: Random, split: str, files: list[Path]) -> Pictures:
    """Pictures of the split's scenes as JPEG files; the captions of each."""
    source = ScenesSource(split)
    texts = []
    for file in files:
        scene = source.scene(rng)
        texts.append(captions(scene, rng))
        file.parent.mkdir(parents=True, exist_ok=True)
        render(scene).save(file, quality=95)
    return texts
