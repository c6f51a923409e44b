"""Stands in for the command jair in tests of experiments: the same words and files, no training.

``train`` logs its steps, saves the configuration, and notes how it was called. Beside the run's folder lies
preset.json, what "tiny" is, and with a file "die" it dies halfway. ``eval`` prints scores. torch, which takes
longer than all the rest, is not imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def values(words: list[str], option: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == option]


def name_of(source: str) -> str:
    kind, _, task = source.partition("task=")
    return f"{kind.partition(':')[0].rstrip(',')}/{task or 'questions'}"


def train(words: list[str]) -> None:
    out, options = Path(words[0]), words[1:]
    changes = (change.partition("=") for change in values(options, "--set"))
    fields = {key: json.loads(value) for key, _, value in changes}
    steps = int(values(options, "--steps")[0])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    (sampler,) = values(options, "--sampler")
    speed = {"difficulty": 2, "uniform": 1}.get(sampler, 0.5)
    names = [name_of(source) for source in values(options, "--val")]
    with (out / "metrics.jsonl").open("a") as log:
        for step in range(1, steps + 1):
            if step == 2 and (out.parent / "die").exists():
                sys.exit("killed at step 2")
            shares = dict.fromkeys(names, 1 / len(names))
            log.write(json.dumps({"step": step, "loss": 1 / step, "probabilities": shares}) + "\n")
        for step in (steps // 2, steps):
            loss = 1 / (1 + speed * step)
            record = {"step": step, "val_loss": loss, "val_accuracy": 1 - loss}
            by_source = {
                "val_losses": dict.fromkeys(names, loss),
                "val_accuracies": dict.fromkeys(names, 1 - loss),
            }
            log.write(json.dumps(record | by_source) + "\n")
    place = out / f"checkpoint-{steps:08d}"
    place.mkdir(exist_ok=True)
    began = [Path(folder) / "config.json" for folder in values(options, "--init")]
    (start,) = began or [out.parent / "preset.json"]
    preset = json.loads(start.read_text())
    (place / "config.json").write_text(json.dumps({**preset, **fields}))
    print(place)


def evaluate(words: list[str]) -> None:
    (split,) = values(words, "--split")
    scores = {"accuracy": {"test": 0.75, "compositional": 0.5}[split], "groups": {}}
    (checkpoint,) = Path(words[0]).glob("checkpoint-*")
    print("a line before", json.dumps({"checkpoint": str(checkpoint), **scores}), sep="\n")


def guess(words: list[str]) -> None:
    print(json.dumps({"source": "scenes/questions", "blind": 0.4, "bag_of_image": 0.45}))


if __name__ == "__main__":
    {"train": train, "eval": evaluate, "data": guess}[sys.argv[1]](sys.argv[2:])
