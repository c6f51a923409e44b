"""The plots of a run, as SVG: speed-ups, tokens per second, roofline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from benchmarks import shapes
from benchmarks.rows import Result, Run, Timing

_OURS, _OURS_LIGHT, _PEER, _PEER_LIGHT, _INK = "#0b6e99", "#7fb8d1", "#c0562f", "#e2a78f", "#30363d"
_COLOURS = ("#0b6e99", "#7a5195", "#2f855a", "#b08800", "#c0562f", "#5b6b7f", "#a23b72", "#3f7f7f", "#8c6d46")
_OPS = dict(zip(shapes.OPS, _COLOURS, strict=True))
_PASS = {"fwd": "forward", "fwdbwd": "forward + backward"}
_BACKENDS = {"cpu": "fused", "triton": "fused (triton)", "cuda": "fused (cuda)", "compile": "torch.compile"}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": _INK,
    "axes.axisbelow": True,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "grid.color": "#d8dee4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "jair-kernels",  # the same numbers give the same file
}


def best(result: Result) -> Timing | None:
    """The faster of our backends."""
    return min(result.ours, key=lambda timing: timing.median, default=None)


def _bars(axes: Axes, op: str, results: list[Result]) -> None:
    labels = list(dict.fromkeys((result.case, result.dtype) for result in results))
    colours = {"fwd": _OURS_LIGHT, "fwdbwd": _OURS}
    for result in results:
        ours = best(result)
        if ours is None:
            continue
        way = shapes.DIRECTIONS.index(result.direction)
        y, speedup = labels.index((result.case, result.dtype)) + 0.38 * (way - 0.5), result.speedup(ours)
        axes.barh(y, speedup, height=0.34, color=colours[result.direction])
        target = result.target()
        if target:
            axes.plot([target] * 2, [y - 0.17, y + 0.17], color=_INK, linewidth=1.6, solid_capstyle="butt")
        tie = ", tie" if result.verdict(ours) == "tie" else ""
        column = axes.get_yaxis_transform()  # x in fractions of the axes
        axes.text(1.01, y, f"{speedup:.2f}x{tie}", transform=column, va="center", fontsize=7.5)
    axes.axvline(1, color=_PEER, linewidth=1.2)
    axes.set_yticks(range(len(labels)), [f"{case}  {dtype}" for case, dtype in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.set_title(op)
    axes.grid(axis="x")


def _compared(run: Run) -> list[Result]:
    """Rows of ours that have all their peers, without those that are there for the curves alone."""
    results = [result for result in run.results if result.complete and result.ours]
    others = [r for r in results if r.op not in shapes.POOLING_OPS]
    pooled = [r for r in results if r.op in shapes.POOLING_OPS]
    on_curve = shapes.only_on_curve
    return [r for r in pooled if not on_curve(shapes.Case.parse(r.case), r.dtype, run.device)] + others


def speedups(run: Run) -> Figure | None:
    """A bar for every row, a line at 1 = the fastest peer, a tick at what was aimed at."""
    compared = _compared(run)
    panels = {op: [result for result in compared if result.op == op] for op in shapes.OPS}
    panels = {op: results for op, results in panels.items() if results}
    if not panels:
        return None
    heights = [len({(result.case, result.dtype) for result in results}) for results in panels.values()]
    figure = Figure(figsize=(8, 0.42 * sum(heights) + 0.62 * len(heights) + 0.9), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (op, results) in zip(grid[:, 0], panels.items(), strict=True):
        _bars(axes, op, results)
    longest = max(max(result.speedup(ours) for ours in result.ours) for result in compared)
    aimed = max(result.target() or 0 for result in compared)
    grid[-1, 0].set_xlim(0, 1.08 * max(longest, aimed, 1))
    grid[-1, 0].set_xlabel("speed-up over the fastest of eager PyTorch and torch.compile")
    handles = [
        Patch(color=_OURS_LIGHT, label=_PASS["fwd"]),
        Patch(color=_OURS, label=_PASS["fwdbwd"]),
        Line2D([], [], color=_PEER, linewidth=1.2, label="fastest peer"),
        Line2D([], [], color=_INK, linewidth=1.6, label="goal"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=4)
    return figure


def _curves(axes: Axes, results: list[Result], size: Callable[[str], int]) -> None:
    """Tokens per second of every contestant that has all points, a line for each direction."""
    names = [name for name in results[0].timings if all(name in result.timings for result in results)]
    colours = {"eager": _PEER, "compile": "#b08800"}
    for name in names:
        for way, dashes in (("fwd", (4, 2)), ("fwdbwd", (1, 0))):
            found = [r for r in results if r.direction == way and name in r.timings]
            points = sorted((size(r.case), r.timings[name]) for r in found)
            rates = [timing.counts["tokens"] / timing.median for _, timing in points]
            label = f"{_BACKENDS.get(name, name)}, {_PASS[way]}"
            colour = colours.get(name, _OURS if name != "cuda" else _OPS["fused_token_pool"])
            style: dict[str, Any] = {
                "color": colour,
                "dashes": dashes,
                "marker": "o",
                "markersize": 3.5,
                "linewidth": 1.5,
            }
            axes.plot([n for n, _ in points], rates, label=label, **style)
    ticks = sorted({size(result.case) for result in results})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{tick:,}".replace(",", " ") for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid()


def tokens_per_second(run: Run) -> Figure | None:
    """fused_tokenlearner against the number of input tokens and of output tokens."""
    sweeps = {axis: _sweep(run, axis) for axis in "nk"}
    if any(len({result.case for result in results}) < 2 for results in sweeps.values()):
        return None
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _curves(left, sweeps["n"], lambda case: shapes.Case.parse(case).n)
    _curves(right, sweeps["k"], lambda case: shapes.Case.parse(case).k)
    least = min(result.timings["eager"].counts["tokens"] for result in sweeps["n"])
    images = shapes.k_sweep_case(1, run.device).b
    left.set(xlabel="tokens N of an image", ylabel="tokens per second")
    left.set_title(f"K = 8, at least {least} tokens a call")
    right.set(xlabel="output tokens K", title=f"{images} images of N = 196")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _sweep(run: Run, axis: str) -> list[Result]:
    mine = [r for r in run.results if r.op == "fused_tokenlearner" and r.dtype == "bf16" and r.ours]
    return [
        result for result in mine if axis in shapes.sweep_axis(shapes.Case.parse(result.case), run.device)
    ]


def _roofs(axes: Axes, run: Run, dtype: str, low: float, high: float) -> None:
    copy, product = run.ceilings["copy"], run.ceilings["matmul"][dtype]
    roofs = [(product, "torch.mm", (4, 2))]
    tiles = run.ceilings["tiles"]
    if dtype == "bf16" and isinstance(tiles, float):
        roofs.append((tiles, "tile unit", (1, 0)))
    label: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5}
    for rate, name, dashes in roofs:
        knee = min(max(rate / copy, low), high)
        line: dict[str, Any] = {"color": "#8c959f", "dashes": dashes, "linewidth": 1.2}
        axes.plot([low, knee, high], [min(x * copy, rate) for x in (low, knee, high)], **line)
        text = f"{name} {rate / 1e12:.3g} TFLOP/s"
        axes.annotate(text, (high, min(high * copy, rate)), xytext=(0, 3), ha="right", **label)
    if low * copy < max(rate for rate, *_ in roofs):  # the sloping part lies within the panel
        text = f"copy {copy / 1e9:.3g} GB/s"
        axes.annotate(text, (low, low * copy), xytext=(14, 0), va="center", **label)


def roofline(run: Run) -> Figure | None:
    """Achieved FLOP/s against FLOPs per byte, ours and the fastest peer, under the measured ceilings."""
    compared = _compared(run)
    dtypes = [dtype for dtype in shapes.DTYPES if any(result.dtype == dtype for result in compared)]
    if not dtypes:
        return None
    figure = Figure(figsize=(max(6, 4 * len(dtypes)), 3.9), layout="constrained")
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    intensities = [_intensity(result) for result in compared]
    low, high = min(intensities) / 2, max(intensities) * 6
    for axes, dtype in zip(panels, dtypes, strict=True):
        results = [result for result in compared if result.dtype == dtype]
        _roofs(axes, run, dtype, low, high)
        for result in results:
            ours, peer, x = best(result), result.fastest_peer(), _intensity(result)
            assert ours is not None
            heights = [timing.counts["flops"] / timing.median for timing in (peer, ours)]
            marker = "o" if result.direction == "fwdbwd" else "^"
            colour = _OPS[result.op]
            axes.plot([x, x], heights, color=colour, linewidth=0.8, alpha=0.5)
            axes.plot(x, heights[0], marker, markersize=5, color=colour, markerfacecolor="white")
            axes.plot(x, heights[1], marker, markersize=5, color=colour)
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(low, high),
            title=dtype,
            xlabel="FLOP per byte (minimum traffic)",
        )
        axes.grid()
    panels[0].set_ylabel("FLOP/s")
    figure.legend(handles=_roofline_legend(compared), loc="outside upper center", ncols=4)
    return figure


def _intensity(result: Result) -> float:
    counts = next(iter(result.timings.values())).counts
    return float(counts["flops"] / counts["bytes"])


def _roofline_legend(results: list[Result]) -> list[Line2D]:
    ops = [op for op in shapes.OPS if any(result.op == op for result in results)]
    point: dict[str, Any] = {"linestyle": "", "markersize": 5, "color": _INK}
    return [
        *(Line2D([], [], color=_OPS[op], linewidth=3, label=op) for op in ops),
        Line2D([], [], marker="^", label=_PASS["fwd"], **point),
        Line2D([], [], marker="o", label=_PASS["fwdbwd"], **point),
        Line2D([], [], marker="s", label="ours", **point),
        Line2D([], [], marker="s", markerfacecolor="white", label="fastest peer", **point),
    ]


def draw(run: Run, folder: Path) -> list[str]:
    """Write every plot the run has rows for; the names of the files."""
    written = []
    with mpl.rc_context(_STYLE):
        for plot in (speedups, tokens_per_second, roofline):
            figure = plot(run)
            if figure is not None:
                written.append(f"{plot.__name__}.svg")
                figure.savefig(folder / written[-1], metadata={"Date": None})
    return written
