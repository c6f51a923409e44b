"""The paper's cost tables, recounted: what is varied, as data, and what each model costs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from jair import cost
from jair.config import PRESETS, JAIRConfig
from jair.memory import Memory, memories


@dataclass(frozen=True)
class Row:
    """A model of a table: changes to the configuration, and the paper's figure, in units of 10^9, if any."""

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None
    text_length: int | None = None
    preset: str | None = None  # in place of the table's


OURS = {"fusion": "joint_adaptive"}
FUSIONS = {
    "ours": OURS,
    "concat": {"fusion": "concat"},
    "cross_attention": {"fusion": "cross_attention"},
    "perceiver": {"fusion": "perceiver"},
    "cotokenization": {"fusion": "cotokenization"},
}
_PAPER = {"ours": 38.9, "concat": 58.4, "perceiver": 40.3, "cotokenization": 43.8}
IMAGE_SIZES = (224, 384, 448)

# A row sets all that its label names, also what is the default, since a user's changes are to the rest. What
# belongs to one fusion is varied in that.
TABLES: dict[str, list[Row]] = {
    "Fusion": [
        *(Row(name, changes, _PAPER.get(name)) for name, changes in FUSIONS.items()),
        Row("ours, stream text", {**OURS, "stream": "text"}),
    ],
    "Iterations": [
        Row(str(count), {**OURS, "iterations": count}, figure)
        for count, figure in ((1, 34.2), (2, 35.5), (4, 38.9), (8, 42.5))
    ],
    "Tokens of each modality": [
        Row(str(count), {**OURS, "num_latents": count}, figure)
        for count, figure in ((16, 18.5), (32, 28.4), (64, 38.9), (128, 72.9))
    ],
    "Layers of the stack": [
        Row(str(count), {"num_layers": count}, figure)
        for count, figure in ((8, 22.4), (16, 30.5), (32, 38.9))
    ],
    "Resampler of the image": [
        Row(name, {**OURS, "resampler": name}, figure)
        for name, figure in (("latent", 38.9), ("spatial", 42.5), ("tokenlearner", None))
    ],
    "Image size": [
        Row(f"{name}, {size} px", {"image_size": size, **changes}, _PAPER.get(name) if size == 224 else None)
        for size in IMAGE_SIZES
        for name, changes in FUSIONS.items()
    ],
    "Text length": [
        Row(f"{name}, {length} words", FUSIONS[name], text_length=length)
        for length in (10, 32, 64)
        for name in ("ours", "concat")
    ],
    "Model size": [
        Row(f"{preset}, {name}", FUSIONS[name], _PAPER[name] if preset == "base" else None, preset=preset)
        for preset in ("base", "large")
        for name in ("ours", "concat")
    ],
}
BACKENDS = {"fused": None, "plain": "reference"}


@dataclass(frozen=True)
class Cost:
    """What a model costs a sample.

    macs: multiply-accumulates of a teacher-forced forward pass. saved, peak: bytes of a training step under
    bfloat16 autocast, as `jair.memory.Memory` has them, on the "fused" and the "plain" backend; or nothing.
    """

    table: str
    label: str
    macs: int
    parameters: int
    paper: float | None
    saved: dict[str, int]
    peak: dict[str, int]

    @property
    def difference(self) -> float | None:
        """From the paper's figure, as a fraction of it; one multiply-accumulate counts as one FLOP there."""
        return None if self.paper is None else self.macs / (1e9 * self.paper) - 1

    def to_dict(self) -> dict[str, Any]:
        """All values by name, with 2 x macs as "flops"."""
        return {**asdict(self), "flops": 2 * self.macs, "difference": self.difference}


Model = tuple[JAIRConfig, int | None]  # and the length of its text


def count(
    preset: str = "base",
    changes: Mapping[str, Any] | None = None,
    *,
    text_length: int | None = None,
    memory_of: Collection[str] = tuple(TABLES),
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda steps, total: steps,
) -> list[Cost]:
    """Every row of every table.

    Args:
        preset: the model that is varied. changes: to it, by field name; a row keeps what its label names.
        text_length: as in `jair.cost.macs`.
        memory_of: tables with saved and peak bytes too, which takes minutes for all of them, on as many
            processes as there are cores. They import the program anew: a script needs its
            ``if __name__ == "__main__"``.
        progress: wraps an iterable of a known length, to show how far it is.

    The paper's figures stand beside the preset "base" without changes only. Rows of another preset that does
    not take the changes are left out.

    Raises:
        TypeError, ValueError: a preset, field or length that does not fit, by name.
    """
    given = dict(changes or {})
    longest = JAIRConfig.preset(preset, **given).max_text_length
    models: dict[tuple[str, str], Model] = {}
    operations: dict[str, tuple[int, int]] = {}
    for table, rows in TABLES.items():
        for row in rows:
            if (row.text_length or 0) > longest or (row.preset is not None and preset != "base"):
                continue
            try:
                model = _model(row, preset, given, text_length)
                if _key(model) not in operations:
                    operations[_key(model)] = _operations(*model)
            except ValueError:
                if row.preset in (None, preset):
                    raise
                continue  # what fits one preset need not fit another: a T5 has one width
            models[table, row.label] = model
    weighed = {_key(model): model for (table, _), model in models.items() if table in memory_of}
    needs = dict(zip(weighed, progress(_memories(list(weighed.values())), len(weighed)), strict=True))
    published = preset == "base" and not given and text_length is None
    found = []
    for (table, label), model in models.items():
        paper = next(row.paper for row in TABLES[table] if row.label == label)
        sizes = dict(zip(BACKENDS, needs[_key(model)], strict=True)) if table in memory_of else {}
        found.append(
            Cost(
                table,
                label,
                *operations[_key(model)],
                paper if published else None,
                {name: size.saved for name, size in sizes.items()},
                {name: size.peak for name, size in sizes.items()},
            )
        )
    return found


def _model(row: Row, preset: str, given: Mapping[str, Any], text_length: int | None) -> Model:
    """A row's model: given changes to a preset, but for what its label names, another preset's sizes too."""
    named = {**(PRESETS[row.preset] if row.preset else {}), **row.changes}
    return JAIRConfig.preset(preset, **{**given, **named}), row.text_length or text_length


def _key(model: Model) -> str:
    config, text_length = model
    return repr((config, text_length or config.max_text_length))


def _operations(config: JAIRConfig, text_length: int | None) -> tuple[int, int]:
    return cost.macs(config, text_length).total, cost.parameters(config)


def _memories(models: list[Model]) -> Iterable[list[Memory]]:
    """Of each model, on every one of `BACKENDS`."""
    if not models:
        return
    workers = min(len(models), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_memory, models)


def _memory(model: Model) -> list[Memory]:
    config, text_length = model
    return memories(config, tuple(BACKENDS.values()), text_length)
