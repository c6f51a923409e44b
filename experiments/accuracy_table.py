"""Finished runs of the accuracy experiment as a Markdown page and a plot."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import tables
from experiments.runs import Result
from experiments.variants import OURS, REFERENCE, TABLES, VARIANTS, Variant
from jair import plots
from jair._files import write_text
from jair.data.sources import SourceSpec

PLOT, GUESSES = "accuracy.svg", "baselines.json"
AIM = 0.65  # of the reference's operations, at no less than its accuracy


@dataclass(frozen=True)
class Row:
    """A variant with the results of its seeds."""

    variant: Variant
    results: list[Result]

    @property
    def gmac(self) -> float:
        """Of one sample."""
        return float(self.results[0]["gmac"])

    def values(self, key: str) -> list[float]:
        """One a seed, where it was measured."""
        return [result[key] for result in self.results if result.get(key) is not None]

    def mean(self, key: str) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values(key))


def load(folder: Path) -> list[Row]:
    """The rows with at least one finished run, in the table's order; raises ValueError if there are none."""
    by_name = tables.load(folder, "variant")
    return [Row(variant, by_name[variant.name]) for variant in VARIANTS if variant.name in by_name]


def write(folder: Path) -> None:
    """Write README.md and accuracy.svg of the runs that are finished."""
    rows = load(folder)
    found = folder / GUESSES
    guesses = json.loads(found.read_text()) if found.exists() else {}
    plots.save(lambda: plot(rows, guesses.get("blind")), folder / PLOT)
    write_text(folder / tables.PAGE, page(rows, guesses))


def page(rows: list[Row], guesses: dict[str, Any]) -> str:
    """All tables, what was held equal, and what came out of the aim."""
    lines = ["# Accuracy against operations", "", _setting(rows), "", *_verdict(rows)]
    lines += _lessons(rows[0].results[0]["settings"]["stages"])
    if guesses:
        blind, colours = (100 * guesses[key] for key in ("blind", "bag_of_image"))
        told = f"{blind:.1f} % from the question alone, {colours:.1f} % with a histogram of colours"
        lines += [f"Guessing gets {told}.", ""]
    lines += [f"![Accuracy against GMAC]({PLOT})", ""]
    reference = next((row.gmac for row in rows if row.variant.name == REFERENCE), None)
    for table, title in TABLES.items():
        shown = [row for row in rows if table in row.variant.tables]
        if any(row.variant.tables[0] == table for row in shown):
            lines += [f"## {title}", "", *_table(shown, reference), ""]
    return "\n".join(lines)


def _setting(rows: list[Row]) -> str:
    results = [result for row in rows for result in row.results]
    return (
        "All models start with the same image encoder and are trained alike on `scenes`, each seed with its "
        "own weights and its own order of examples. Accuracy is exact match on questions of the test split; "
        "held-out attribute combinations are a split of their own. Spread is from the lowest to the highest "
        "seed. GMAC is of one sample with text padded to the full length, counted as in `jair cost`.\n\n"
        f"{tables.provenance(results, ('stages',))}"
    )


def _lessons(stages: list[dict[str, Any]]) -> list[str]:
    """The steps of each stage, and the weights of its sources in percent."""
    weights = [_weights(stage["sources"]) for stage in stages]
    names = list(dict.fromkeys(name for each in weights for name in each))
    lines = [["stage", "steps", *names]]
    for number, (stage, each) in enumerate(zip(stages, weights, strict=True), start=1):
        cells = [f"{100 * each[name]:.0f} %" if name in each else "" for name in names]
        lines.append([str(number), str(stage["steps"]), *cells])
    told = "Each stage starts from the model of the one before. Weights of the sources:"
    return [told, "", *tables.markdown(lines), ""]


def _weights(sources: list[str]) -> dict[str, float]:
    weights = {spec.name: spec.weight for spec in map(SourceSpec.parse, sources)}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _verdict(rows: list[Row]) -> list[str]:
    """Whether ours reaches the reference's accuracy at the share of its operations that was aimed at."""
    by_name = {row.variant.name: row for row in rows}
    if OURS not in by_name or REFERENCE not in by_name:
        return []
    ours, reference = by_name[OURS], by_name[REFERENCE]
    share = ours.gmac / reference.gmac
    gap = 100 * (ours.mean("accuracy") - reference.mean("accuracy"))
    low, high = min(ours.values("accuracy")), max(reference.values("accuracy"))
    met = "met" if share <= AIM and gap >= 0 else "missed"
    clear = "" if low > high or gap < 0 else " Their seeds overlap: the difference is within the spread."
    return [
        f"Aim, at least the accuracy of {REFERENCE} at no more than {AIM} of its operations: **{met}**. "
        f"Ours has {share:.2f} of its operations and {gap:+.1f} points of accuracy.{clear}",
        "",
    ]


def _table(rows: list[Row], reference: float | None) -> list[str]:
    header = ["model", "GMAC", f"of {REFERENCE}", "parameters (M)", "accuracy %", "held-out %", "seeds"]
    lines = [header]
    for row in rows:
        lines.append(
            [
                row.variant.name,
                f"{row.gmac:.4f}",
                "" if reference is None else f"{row.gmac / reference:.2f}",
                f"{row.results[0]['parameters'] / 1e6:.2f}",
                tables.spread(row.values("accuracy"), 100),
                tables.spread(row.values("compositional"), 100),
                str(len(row.results)),
            ]
        )
    return tables.markdown(lines)


def plot(rows: list[Row], blind: float | None = None) -> Figure:
    """A point for each variant: mean over the seeds, bars to the lowest and highest; a line at `blind`."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    families = dict(zip(TABLES, plots.COLOURS, strict=False))
    for row in rows:
        family = row.variant.tables[0]
        values = [100 * value for value in row.values("accuracy")]
        mean = statistics.fmean(values)
        axes.errorbar(
            row.gmac,
            mean,
            yerr=[[mean - min(values)], [max(values) - mean]],
            fmt="*" if row.variant.name == OURS else "o",
            markersize=11 if row.variant.name == OURS else 5,
            capsize=2,
            linewidth=1,
            color=families[family],
        )
        axes.annotate(row.variant.name, (row.gmac, mean), (5, 4), textcoords="offset points", fontsize=7.5)
    reference = next((row for row in rows if row.variant.name == REFERENCE), None)
    if reference is not None:
        axes.axvline(AIM * reference.gmac, color=plots.INK, linewidth=0.8, linestyle=":")
        axes.text(
            AIM * reference.gmac,
            0.01,
            f" {AIM} of {REFERENCE}",
            fontsize=7.5,
            transform=axes.get_xaxis_transform(),
        )
    if blind is not None:
        axes.axhline(100 * blind, color=plots.INK, linewidth=0.8, linestyle="--")
        axes.text(0.01, 100 * blind, "without the image", fontsize=7.5, transform=axes.get_yaxis_transform())
    axes.set(xlabel="GMAC of one sample", ylabel="accuracy on scenes, %")
    axes.set_title("Mean over the seeds, from the lowest to the highest")
    return figure
