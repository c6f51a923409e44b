"""What `jair train` logs: metrics.jsonl, a JSON object a line.

Lines of a step have "step", "loss", "lr", "probabilities" and "losses" (both by source; a source without an
example in the step is left out or null) and "examples_per_second"; lines of a validation have "step" and
"val_loss", and any other number that was measured there. What was not finite is null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = "metrics.jsonl"
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Records of a run in the order of their steps; of a step that was logged twice, the later."""

    name: str
    steps: list[Record]
    validations: list[Record]
    cut_off: bool = False  # the last line was left unfinished

    def sources(self, key: str) -> list[str]:
        """The sources that "probabilities" or "losses" name, in the order in which they appear."""
        return list(dict.fromkeys(name for record in self.steps for name in record.get(key) or {}))

    def of_source(self, key: str, source: str) -> list[tuple[int, float]]:
        """(step, value) wherever the source has one."""
        pairs = ((record["step"], (record.get(key) or {}).get(source)) for record in self.steps)
        return [(step, value) for step, value in pairs if value is not None]


def read_run(path: Path, name: str | None = None) -> Run:
    """Read a run's folder, or its metrics.jsonl.

    Raises:
        OSError: there is none. ValueError: a line that is no record (but for a last one, cut off), or none at
            all, by line.
    """
    log = path / LOG if path.is_dir() or path.suffix != ".jsonl" else path
    lines = log.read_text(encoding="utf-8").splitlines()
    by_step: dict[tuple[bool, int], Record] = {}
    cut_off = False
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # the process was killed while it wrote
                cut_off = True
                break
            raise ValueError(f"{log}, line {number}: expected a JSON object, got {line[:60]!r}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{log}, line {number}: expected an object with a step, got {line[:60]!r}")
        by_step["val_loss" in record, record["step"]] = record
    if not by_step:
        raise ValueError(
            f"{log}: expected at least one record, got {'a cut-off line' if cut_off else 'none'}"
        )
    records = sorted(by_step.items())
    steps = [record for (validation, _), record in records if not validation]
    validations = [record for (validation, _), record in records if validation]
    return Run(name or log.parent.resolve().name, steps, validations, cut_off)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read several; runs of the same name get that of the folder above before it. Errors as in `read_run`."""
    folders = [path.resolve().parent if path.suffix == ".jsonl" else path.resolve() for path in paths]
    names = [folder.name for folder in folders]
    return [
        read_run(path, f"{folder.parent.name}/{name}" if names.count(name) > 1 else name)
        for path, folder, name in zip(paths, folders, names, strict=True)
    ]


def smoothed(pairs: Sequence[tuple[int, float]], points: int = 100) -> tuple[list[float], list[float]]:
    """At most `points` means of neighbouring values and of their steps; what is not finite is left out."""
    kept = [(float(step), float(value)) for step, value in pairs if abs(value) < float("inf")]
    width = -(-len(kept) // points)
    blocks = [kept[i : i + width] for i in range(0, len(kept), max(width, 1))]
    means = [[sum(column) / len(block) for column in zip(*block, strict=True)] for block in blocks]
    return [step for step, _ in means], [value for _, value in means]
