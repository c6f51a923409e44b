"""Finished runs of the sampling experiment as a Markdown page and plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import mixture, tables
from experiments.runs import Result
from jair import plots
from jair._files import write_text
from jair.data.sources import SourceSpec
from jair.sampler import WARMUP
from jair.training.validation import NAMES

CURVES, SHARES = "curves.svg", "probabilities.svg"
BASELINE = "uniform"
MEASURES = {"val_loss": "loss", "val_accuracy": "accuracy"}


@dataclass(frozen=True)
class Row:
    """A rule with the results of its seeds."""

    rule: str
    results: list[Result]

    @property
    def name(self) -> str:
        """For people."""
        return str(self.results[0]["name"])

    def last(self, measure: str, source: str | None = None) -> list[float]:
        """A measure at the end, one a seed: the mean over the sources, or that of one source."""
        found = [result["validations"][-1] for result in self.results]
        if source is None:
            return [record[measure] for record in found]
        return [record[NAMES[measure]][source] for record in found]

    def needed(self, measure: str, target: float) -> list[float | None]:
        """Examples after which the target is first reached, one a seed; None = never."""
        return [examples_to(result, measure, target) for result in self.results]


def examples_to(result: Result, measure: str, target: float) -> float | None:
    """Examples until a validation first reaches the target, between two validations by a straight line."""
    sign = -1 if measure == "val_loss" else 1
    before: tuple[float, float] | None = None
    for record in result["validations"]:
        examples, value = record["step"] * result["settings"]["batch_size"], sign * record[measure]
        if value >= sign * target:
            if before is None or value == before[1]:
                return float(examples)
            share = (sign * target - before[1]) / (value - before[1])
            return before[0] + share * (examples - before[0])
        before = examples, value
    return None


def load(folder: Path) -> list[Row]:
    """The rows with at least one finished run, the baseline first; raises ValueError if there are none."""
    by_rule = tables.load(folder, "rule")
    return [Row(rule, by_rule[rule]) for rule in sorted(by_rule, key=lambda rule: (rule != BASELINE, rule))]


def write(folder: Path) -> None:
    """Write README.md and the plots of the runs that are finished."""
    rows = load(folder)
    plots.save(lambda: plot(rows), folder / CURVES)
    plots.save(lambda: shares(rows), folder / SHARES)
    write_text(folder / tables.PAGE, page(rows))


def targets(rows: list[Row]) -> dict[str, float]:
    """What every seed of the baseline reaches in the end; without the baseline, of the first rule."""
    return {"val_loss": max(rows[0].last("val_loss")), "val_accuracy": min(rows[0].last("val_accuracy"))}


def page(rows: list[Row]) -> str:
    """What was compared and how, what came out, and by which source."""
    aims = targets(rows)
    first = rows[0].results[0]
    lines = ["# What adaptive sampling buys", "", _setting(rows), "", *_verdict(rows, aims)]
    loss, right = aims["val_loss"], 100 * aims["val_accuracy"]
    header = ["rule", f"examples to loss {loss:.3f}", f"examples to {right:.1f} %"]
    table = [[*header, "loss at the end", "accuracy at the end %", "seeds"]]
    for row in rows:
        needed = [_needed(row, measure, aims[measure]) for measure in MEASURES]
        ends = [
            tables.spread(row.last("val_loss"), digits=3),
            tables.spread(row.last("val_accuracy"), 100, 1),
        ]
        table.append([row.name, *needed, *ends, str(len(row.results))])
    lines += [*tables.markdown(table), "", f"![Loss and accuracy against examples]({CURVES})", ""]
    for measure, title, scale, digits in (
        ("val_accuracy", "Accuracy of each source at the end, %", 100, 1),
        ("val_loss", "Loss of each source at the end", 1, 3),
    ):
        kinds = _kinds(first)
        by_source = [["rule", *kinds.values()]]
        for row in rows:
            cells = [tables.spread(row.last(measure, source), scale, digits) for source in kinds]
            by_source.append([row.name, *cells])
        lines += [f"## {title}", "", *tables.markdown(by_source), ""]
    lines += ["## Sampling probabilities of the first seed", "", f"![Probabilities]({SHARES})", ""]
    return "\n".join(lines)


def _kinds(result: Result) -> dict[str, str]:
    """Of the sources' names in the logs, what they are in the mixture."""
    specs = [SourceSpec.parse(text).name for text in result["settings"]["stages"][-1]["sources"]]
    return dict(zip(specs, mixture.sources(Path()), strict=True))


def _setting(rows: list[Row]) -> str:
    results = [result for row in rows for result in row.results]
    return (
        "The same model is trained on the same mixture under each rule: an easy source (questions of "
        "`scenes` that count), a hard one (that list objects in an order), a noisy one "
        f"({mixture.NOISY} captions with a word to fill in, of which {100 * mixture.WRONG:.0f} % are another "
        f"picture's) and a tiny one ({mixture.TINY} pictures, does the caption match?). Loss and accuracy "
        "are means over the four sources' validation splits: new pictures, right captions. The targets are "
        "what every seed of uniform sampling reaches in the end. Spread is from the lowest to the highest "
        f"seed.{_warmup(rows)}\n\n"
        f"{tables.provenance(results, left_out=('sampler', 'test_examples'))}"
    )


def _warmup(rows: list[Row]) -> str:
    """For how long rules that learn from their first steps draw uniformly."""
    told = ""
    for row in rows:
        if row.rule in WARMUP:
            steps = row.results[0]["settings"]["stages"][-1]["steps"]
            told += (
                f" Under the rule {row.name}, the first {WARMUP[row.rule]} of the {steps} steps draw "
                "uniformly, to learn from."
            )
    return told


def _verdict(rows: list[Row], aims: dict[str, float]) -> list[str]:
    """What the adaptive rule saves against the baseline, in plain words."""
    adaptive = next((row for row in rows if row.rule == "difficulty"), None)
    if adaptive is None or rows[0].rule != BASELINE:
        return []
    told = []
    for measure, word in MEASURES.items():
        base, ours = (
            [n for n in row.needed(measure, aims[measure]) if n is not None] for row in (rows[0], adaptive)
        )
        missed = len(adaptive.results) - len(ours)
        if missed:
            told.append(f"of the {word}, {missed} of {len(adaptive.results)} seeds never reach the target")
            continue
        saved = 1 - statistics.fmean(ours) / statistics.fmean(base)
        clear = "" if max(ours) < min(base) or min(ours) > max(base) else " (the seeds overlap)"
        told.append(f"to the {word}, {abs(saved):.0%} {'fewer' if saved > 0 else 'more'} examples{clear}")
    return [f"Adaptive against uniform sampling: {'; '.join(told)}.", ""]


def _needed(row: Row, measure: str, target: float) -> str:
    values = row.needed(measure, target)
    reached = [value for value in values if value is not None]
    if not reached:
        return "never"
    told = tables.spread(reached, digits=0)
    return told if len(reached) == len(values) else f"{told}, {len(reached)} of {len(values)} seeds"


def plot(rows: list[Row]) -> Figure:
    """Validation loss and accuracy against examples: mean over the seeds, in a band of all of them."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, measure, scale in ((left, "val_loss", 1), (right, "val_accuracy", 100)):
        _bands(axes, rows, lambda record, m=measure, s=scale: s * record[m])  # type: ignore[misc]
        axes.axhline(scale * targets(rows)[measure], color=plots.INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("examples")
    left.set(ylabel="validation loss")
    right.set(ylabel="validation accuracy, %")
    right.legend(loc="lower right")
    return figure


def _bands(axes: Axes, rows: list[Row], value: Callable[[dict[str, Any]], float]) -> None:
    for row, colour in zip(rows, plots.COLOURS, strict=False):
        size = row.results[0]["settings"]["batch_size"]
        examples = [size * record["step"] for record in row.results[0]["validations"]]
        columns = list(
            zip(*([value(r) for r in result["validations"]] for result in row.results), strict=True)
        )
        axes.fill_between(
            examples, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15
        )
        axes.plot(examples, list(map(statistics.fmean, columns)), color=colour, label=row.name)


def shares(rows: list[Row]) -> Figure:
    """A panel for each rule: the probability of each source against the steps."""
    figure = Figure(figsize=(9, 0.5 + 1.6 * len(rows)), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0], rows, strict=True):
        first = row.results[0]
        for (source, kind), colour in zip(_kinds(first).items(), plots.COLOURS, strict=False):
            curve = first["probabilities"][source]
            axes.plot(curve["step"], curve["value"], color=colour, label=kind)
        axes.set(title=row.name, ylabel="probability", ylim=(0, 1))
    axes.set_xlabel("step")
    axes.legend(loc="upper right", ncols=4)
    return figure
