"""The cost tables as Markdown and as plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from jair.cost_tables import BACKENDS, FUSIONS, IMAGE_SIZES, Cost
from jair.encoders import optional_import

METHOD = """\
One sample, one teacher-forced forward pass with 16 words of answer. GMAC: 10^9 multiply-accumulates of matrix
products and convolutions, in closed form, which agrees with PyTorch's counter; a FLOP in the paper's tables
is one multiply-accumulate. Memory is that of a training step under bfloat16 autocast on a CPU, what a batch
of 2 needs more than a batch of 1: kept for the backward, and the most at any time. That is met when the
gradient of the largest matrix is made, after the logits are gone, and so may grow by less than what is kept.
Working memory inside an operation is not seen. Fused: our operations; plain: their definition in PyTorch,
whose attention is matmul and softmax."""

PLOT = "cost.svg"
_COLOURS = dict(zip(FUSIONS, ("#0b6e99", "#c0562f", "#2f855a", "#7a5195", "#b08800"), strict=True))

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "jair-kernels",  # the same numbers give the same file
}


def render(costs: Sequence[Cost], plot: str | None = None) -> str:
    """All tables, with what they do not say beneath."""
    parts = ["# What JAIR costs", METHOD]
    parts += [] if plot is None else [f"![Operations and memory against image size]({plot})"]
    for table in dict.fromkeys(row.table for row in costs):
        rows = [row for row in costs if row.table == table]
        parts += [f"## {table}", table_of(rows)]
    return "\n\n".join([*parts, "## Limits", limits(costs)]) + "\n"


def table_of(rows: Sequence[Cost]) -> str:
    """Rows as a Markdown table."""
    header = ["model", "GMAC", "2 x GMAC", "paper", "difference", "parameters"]
    if rows[0].saved:
        header += ["kept: fused", "kept: plain", "peak: fused", "peak: plain"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        gmac, far = row.macs / 1e9, row.difference
        cells = [row.label, _digits(gmac), _digits(2 * gmac), "" if row.paper is None else f"{row.paper:.1f}"]
        cells += ["" if far is None else f"{far:+.1%}", f"{row.parameters / 1e6:.1f} M"]
        cells += [f"{size / 2**20:.0f} MiB" for size in (*row.saved.values(), *row.peak.values())]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _digits(value: float) -> str:
    """One decimal, or as many as three digits need."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def limits(costs: Sequence[Cost]) -> str:
    """What has to be said wherever the saving is claimed, with the ratios of these counts."""
    by_label = {(row.table, row.label): row for row in costs}

    def ratio(table: str, suffix: str = "") -> float:
        ours, concat = (by_label[table, name + suffix].macs for name in ("ours", "concat"))
        return concat / ours

    sizes = ", ".join(f"{ratio('Image size', f', {size} px'):.2f}x at {size} px" for size in IMAGE_SIZES)
    lengths = {int(row.label.split()[1]) for row in costs if row.table == "Text length"}
    texts = [f"{ratio('Text length', f', {n} words'):.2f}x at {n} words" for n in sorted(lengths)[::-1]]
    lines = [
        "Based on the paper's abstract, equations and published tables. Sizes that they leave open are our "
        "decision, chosen to come close to the published figures; these do not all fit one model, so compare "
        "ratios.",
        "Plain cross-attention is cheaper than ours. Ours is claimed to be cheaper than concatenation, "
        "Perceiver and iterative co-tokenization.",
        f"Concatenation over ours: {', '.join([*texts, sizes])}; texts are padded. Image size is the robust "
        "axis.",
    ]
    if costs[0].saved:
        kept = [
            f"{_kept(by_label, n, 'plain'):.2f} and {_kept(by_label, n, 'fused'):.2f} at {n} px"
            for n in IMAGE_SIZES
        ]
        lines.append(
            f"Activations kept, ours over concatenation, plain and fused: {', '.join(kept)}. Fused layers "
            "save more where there are more tokens, so they narrow the gap; the image encoder's share is "
            "common to both."
        )
    lines += [
        "Weights, gradients and the optimizer's states come on top: the total of a training step shrinks "
        "less than its activations.",
        "The row of 8 layers is our reading of a figure that is printed as 822.4.",
        "The published memory, 15 GB for concatenation and 9 GB for JAIR, is that of an unknown batch.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _kept(by_label: dict[tuple[str, str], Cost], size: int, backend: str) -> float:
    ours, concat = (
        by_label["Image size", f"{name}, {size} px"].saved[backend] for name in ("ours", "concat")
    )
    return ours / concat


def write(costs: Sequence[Cost], folder: Path) -> str:
    """README.md, cost.json and the plot into a folder; the text.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw(costs, folder / PLOT)
    text = render(costs, PLOT)
    (folder / "README.md").write_text(text)
    (folder / "cost.json").write_text(json.dumps([row.to_dict() for row in costs], indent=1) + "\n")
    return text


def read(folder: Path) -> list[Cost]:
    """The counts that `write` left in a folder."""
    names = [field.name for field in fields(Cost)]
    rows = json.loads((folder / "cost.json").read_text())
    return [Cost(**{name: row[name] for name in names}) for row in rows]


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Operations, and where it was counted memory, of every fusion against image size."""
    by_label = {row.label: row for row in costs if row.table == "Image size"}
    panels: dict[str, Callable[[Cost], float]] = {"GMAC a sample": lambda row: row.macs / 1e9}
    if costs[0].saved:
        panels |= {f"kept by {backend} layers, MiB": _saved(backend) for backend in BACKENDS}
    with optional_import("matplotlib").rc_context(_STYLE):
        figure = optional_import("matplotlib.figure").Figure(
            figsize=(3.3 * len(panels), 3), layout="constrained"
        )
        plots = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, value) in zip(plots, panels.items(), strict=True):
            for fusion, colour in _COLOURS.items():
                values = [value(by_label[f"{fusion}, {size} px"]) for size in IMAGE_SIZES]
                axes.plot(IMAGE_SIZES, values, marker="o", markersize=3.5, color=colour, label=fusion)
            axes.set(title=title, xlabel="image size, pixels", xticks=IMAGE_SIZES)
            axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
        for axes in plots[1:]:
            axes.set_ylim(0, max(other.get_ylim()[1] for other in plots[1:]))
        plots[0].set_ylim(0)
        plots[0].legend()
        figure.savefig(path, metadata={"Date": None})


def _saved(backend: str) -> Callable[[Cost], float]:
    return lambda row: row.saved[backend] / 2**20
