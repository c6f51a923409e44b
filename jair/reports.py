"""Runs as a page: a table, learning curves, sampling probabilities and losses of the sources over time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from jair import plots
from jair._files import write_text
from jair.runs import Run

PAGE = "report.md"


def write_report(runs: Sequence[Run], folder: Path) -> Path:
    """Draw the plots that the runs have numbers for, and write report.md, which shows them; its path."""
    lines = ["# Training report", "", *_table(runs), ""]
    for run in runs:
        if run.cut_off:
            lines += [f"The last line of {_cell(run.name)} was cut off and is left out.", ""]
    plots.save(lambda: plots.learning_curves(runs), folder / "learning_curves.svg")
    lines += ["## Learning curves", "", "![Loss against steps](learning_curves.svg)", ""]
    for key, title, axis in (
        ("probabilities", "Sampling probabilities", "probability"),
        ("losses", "Losses of the sources", "loss"),
    ):
        shown = [run for run in runs if run.sources(key)]
        if shown:
            plots.save(lambda s=shown, k=key, a=axis: plots.by_source(s, k, a), folder / f"{key}.svg")  # type: ignore[misc]
            lines += [f"## {title}", "", f"![{title} against steps]({key}.svg)", ""]
    write_text(folder / PAGE, "\n".join(lines))
    return folder / PAGE


def _table(runs: Sequence[Run]) -> list[str]:
    """Steps, losses and speed; a column for every other number of the last validation."""
    extra = list(dict.fromkeys(key for run in runs for key in _numbers(run)))
    header = ["run", "steps", "loss at the end", "lowest validation loss", "at step", "examples/s", *extra]
    rows = [["---", *["---:"] * (len(header) - 1)]]
    for run in runs:
        losses = [r["loss"] for r in run.steps if r.get("loss") is not None]
        finite = [r for r in run.validations if r["val_loss"] is not None and math.isfinite(r["val_loss"])]
        lowest = min(finite, key=lambda r: float(r["val_loss"]), default=None)
        speeds = [r["examples_per_second"] for r in run.steps if r.get("examples_per_second")]
        numbers = _numbers(run)
        rows.append(
            [
                _cell(run.name),
                str(run.steps[-1]["step"]) if run.steps else "",
                f"{statistics.fmean(losses[-max(1, len(losses) // 20) :]):.4f}" if losses else "",
                f"{lowest['val_loss']:.4f}" if lowest else "",
                str(lowest["step"]) if lowest else "",
                f"{statistics.median(speeds):.1f}" if speeds else "",
                *(f"{numbers[key]:.4f}" if key in numbers else "" for key in extra),
            ]
        )
    return ["| " + " | ".join(cells) + " |" for cells in ([_cell(name) for name in header], *rows)]


def _numbers(run: Run) -> dict[str, float]:
    last = run.validations[-1] if run.validations else {}
    known = ("step", "val_loss")
    return {key: value for key, value in last.items() if key not in known and isinstance(value, float)}


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
