"""The image encoder with which all models of the experiments start: ``python -m experiments.encoder``.

Models of images and language start with an encoder that has learned to see; where each has to learn that too,
from a handful of questions, the table compares little else. So the ResNet of the preset "tiny" first learns
from drawn scenes which cell of its grid holds an object's centre, and the object's attributes. It is written
as transformers' ResNetModel, a few hundred kilobytes, and named in `experiments.variants.BASE`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from experiments.runs import provenance
from jair import JAIRConfig
from jair._files import write_text
from jair.data.images import to_pixels
from jair.data.scenes.render import render
from jair.data.scenes.source import ScenesSource
from jair.data.scenes.world import ATTRIBUTES, Scene
from jair.encoders import ImageEncoder

FOLDER = Path("experiments/results/encoder")
PRESENCE = 8.0  # weight of the first question beside each attribute's, since most cells are empty
WARMUP = 100


class Labelled:
    """Endless scenes of a split with what is where: pixels [B,3,S,S], labels [B,g,g,1+attributes].

    A label is 1 in a cell with an object's centre, then the numbers of its attributes; -1 elsewhere.
    """

    def __init__(self, split: str, seed: int, image_size: int, grid: int) -> None:
        self.source, self.image_size, self.grid = ScenesSource(split), image_size, grid
        self.rng = Random(f"encoder/{split}/{seed}")

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """The next `size` scenes."""
        scenes = [self.source.scene(self.rng) for _ in range(size)]
        pixels = torch.stack([to_pixels(render(s, self.image_size), self.image_size) for s in scenes])
        return pixels, torch.from_numpy(np.stack([self.label(scene) for scene in scenes]))

    def label(self, scene: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Of one scene; of two objects in a cell the one in front."""
        label = np.full((self.grid, self.grid, 1 + len(ATTRIBUTES)), -1, dtype=np.int64)
        for thing in scene.things:
            numbers = [values.index(getattr(thing, name)) for name, values in ATTRIBUTES.items()]
            label[int(thing.y * self.grid), int(thing.x * self.grid)] = [1, *numbers]
        return label


class Detector(nn.Module):
    """The encoder's backbone and a linear layer on each cell: presence, then the values of each attribute."""

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        encoder = ImageEncoder(config)
        self.grid = math.isqrt(len(encoder.positions))
        self.backbone = encoder.backbone
        self.head = nn.Linear(encoder.project.in_features, 1 + sum(map(len, ATTRIBUTES.values())))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B,3,S,S] -> [B,g,g,1+values]."""
        features = self.backbone(pixels).last_hidden_state
        logits: Tensor = self.head(features.movedim(1, -1))
        return logits


def losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of all questions, and the share of right answers to each."""
    there = labels[..., 0] == 1
    loss = PRESENCE * F.binary_cross_entropy_with_logits(logits[..., 0], there.float())
    right = {"object": float(((logits[..., 0] > 0) == there).float().mean())}
    parts = logits[there][:, 1:].split([len(values) for values in ATTRIBUTES.values()], dim=1)
    for index, (name, part) in enumerate(zip(ATTRIBUTES, parts, strict=True)):
        wanted = labels[there][:, 1 + index]
        loss = loss + F.cross_entropy(part, wanted)
        right[name] = float((part.argmax(1) == wanted).float().mean())
    return loss, right


def train(steps: int, batch_size: int, lr: float, seed: int) -> tuple[Detector, dict[str, float]]:
    """A trained detector, and its accuracy on 2,000 scenes of the split val."""
    torch.manual_seed(seed)
    config = JAIRConfig.preset("tiny")
    model = Detector(config)
    scenes = Labelled("train", seed, config.image_size, model.grid)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)

    def rate(step: int) -> float:
        left = (step - WARMUP) / max(1, steps - WARMUP)
        return (step + 1) / WARMUP if step < WARMUP else 0.5 * (1 + math.cos(math.pi * left))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in track(range(steps), "encoder", disable=not sys.stderr.isatty()):
        pixels, labels = scenes.batch(batch_size)
        loss, _ = losses(model(pixels), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    held = Labelled("val", seed, config.image_size, model.grid)
    model.eval()
    with torch.no_grad():
        found = [losses(model(pixels), labels)[1] for pixels, labels in (held.batch(250) for _ in range(8))]
    return model, {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def main(arguments: list[str] | None = None) -> int:
    """Train, and write the backbone and how good it is."""
    parser = argparse.ArgumentParser(prog="python -m experiments.encoder", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("steps", "batch_size", "lr", "seed")}
    model, accuracy = train(**settings)
    model.backbone.save_pretrained(options.out)
    told = {"accuracy": accuracy, "settings": settings, **provenance()}
    write_text(options.out / "training.json", json.dumps(told, indent=1) + "\n")
    print(" ".join(f"{name} {100 * value:.2f} %" for name, value in accuracy.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
