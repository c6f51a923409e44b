"""Plots of runs, as SVG that is the same for the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from jair._files import replacing
from jair.runs import Run, smoothed

COLOURS = ("#0b6e99", "#c0562f", "#2f855a", "#7a5195", "#b08800", "#a23b72", "#5b6b7f", "#7fb8d1", "#e2a78f")
INK = "#30363d"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": "#d8dee4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "jair",
}


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Draw in the house style and write the file whole; its suffix says the format."""
    with mpl.rc_context(STYLE), replacing(path) as file:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        draw().savefig(file, format=path.suffix[1:], metadata=metadata, dpi=120)


def label(text: str) -> str:
    """A name as it is: no formula between dollars, and not hidden from legends by a leading underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def learning_curves(runs: Sequence[Run]) -> Figure:
    """Training loss, a line for each run, and validation loss, a dot for each validation."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        pairs = [(r["step"], r["loss"]) for r in run.steps if r.get("loss") is not None]
        axes.plot(*smoothed(pairs), color=colour, label=label(run.name))
        measured = [r for r in run.validations if r["val_loss"] is not None]
        losses = [r["val_loss"] for r in measured]
        axes.plot([r["step"] for r in measured], losses, "o", color=colour, markersize=4)
    axes.set(xlabel="step", ylabel="loss", title="Training (line) and validation loss (dots)")
    _positive_logarithmic(axes)
    axes.legend()
    return figure


def by_source(runs: Sequence[Run], key: str, title: str) -> Figure:
    """A panel for each run, a line for each source; key is "probabilities" or "losses"."""
    figure = Figure(figsize=(8, 0.6 + 2.6 * len(runs)), layout="constrained")
    names = list(dict.fromkeys(name for run in runs for name in run.sources(key)))
    grid = figure.subplots(len(runs), 1, sharex=True, squeeze=False)
    for axes, run in zip(grid[:, 0], runs, strict=True):
        for source in run.sources(key):
            colour = COLOURS[names.index(source) % len(COLOURS)]
            style = ("-", "--", ":", "-.")[names.index(source) // len(COLOURS) % 4]
            axes.plot(*smoothed(run.of_source(key, source)), style, color=colour, label=label(source))
        axes.set(title=label(run.name), ylabel=title)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        if key == "probabilities":
            axes.set_ylim(bottom=0)
        else:
            _positive_logarithmic(axes)
    grid[-1, 0].set_xlabel("step")
    return figure


class _Plain(LogFormatter):
    """0.4 instead of 4e-1, on those ticks that get a label."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _positive_logarithmic(axes: Axes) -> None:
    values: list[float] = [y for line in axes.lines for y in np.asarray(line.get_ydata()).tolist()]
    if values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(_Plain(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
