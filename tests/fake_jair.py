"""Stands in for the command jair in tests of experiments: the same words and files, no training.

``train`` logs its steps, saves the configuration, and notes how it was called. Beside the run's folder lies
preset.json, what "tiny" is, and with a file "die" it dies halfway. ``eval`` prints scores. torch, which takes
longer than all the rest, is not imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def train(words: list[str]) -> None:
    out, options = Path(words[0]), words[1:]
    changes = [options[i + 1] for i, word in enumerate(options) if word == "--set"]
    fields = {key: json.loads(value) for key, _, value in (change.partition("=") for change in changes)}
    steps = int(options[options.index("--steps") + 1])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    with (out / "metrics.jsonl").open("a") as log:
        for step in range(1, steps + 1):
            if step == 2 and (out.parent / "die").exists():
                sys.exit("killed at step 2")
            log.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
    place = out / f"checkpoint-{steps:08d}"
    place.mkdir(exist_ok=True)
    preset = json.loads((out.parent / "preset.json").read_text())
    (place / "config.json").write_text(json.dumps({**preset, **fields}))


def evaluate(words: list[str]) -> None:
    split = words[words.index("--split") + 1]
    scores = {"accuracy": {"test": 0.75, "compositional": 0.5}[split], "groups": {}}
    (checkpoint,) = Path(words[0]).glob("checkpoint-*")
    print("a line before", json.dumps({"checkpoint": str(checkpoint), **scores}), sep="\n")


def guess(words: list[str]) -> None:
    print(json.dumps({"source": "scenes/questions", "blind": 0.4, "bag_of_image": 0.45}))


if __name__ == "__main__":
    {"train": train, "eval": evaluate, "data": guess}[sys.argv[1]](sys.argv[2:])
