"""A run as Markdown tables and plots: ``python -m benchmarks.report [benchmarks.json] [--commit]``."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import plots
from benchmarks.rows import NEW, RESULTS, Result, Run, Timing, load, show_seconds

_CAPTIONS = {
    "speedups.svg": "Speed-up over the fastest peer",
    "tokens_per_second.svg": "fused_tokenlearner, bf16: tokens per second against N and K",
    "roofline.svg": "Achieved rate against intensity",
}


def show_bytes(count: float) -> str:
    """Three digits and a decimal unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:g} B"


def _table(header: list[str], lines: Iterable[list[str]], text_columns: int) -> list[str]:
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)]


def _names(result: Result, ours: Timing) -> list[str]:
    return [result.case, result.dtype, result.direction, ours.backend]


def _speedup(result: Result, ours: Timing) -> str:
    verdict = result.verdict(ours)
    value = f"{result.speedup(ours):.2f}x"
    return f"**{value}**" if verdict == "faster" else f"{value} ({verdict})"


def _goal(result: Result, ours: Timing) -> str:
    target = result.target()
    if target is None:
        return ""
    return f"{target:g}x, {'met' if result.speedup(ours) >= target else 'missed'}"


def speed_table(results: list[Result], with_op: bool = False) -> list[str]:
    """Time and speed-up of every row of ours that has all its peers; `with_op`: with its operation's name."""
    lines = []
    for result in results:
        peer = result.fastest_peer()
        for ours in result.ours:
            times = [show_seconds(ours.median), f"{peer.backend} {show_seconds(peer.median)}"]
            op = [result.op] * with_op
            lines.append([*op, *_names(result, ours), *times, _speedup(result, ours), _goal(result, ours)])
    header = ["case", "dtype", "pass", "backend", "time", "fastest peer", "speed-up", "goal"]
    return _table(["operation"] * with_op + header, lines, 4 + with_op)


def cost_table(results: list[Result]) -> list[str]:
    """Counts of every row: work, traffic, fraction of the ceiling, memory of ours and of the peers, and where
    it was measured the time of their own code on the host of a GPU.
    """
    on_host = any("host_seconds" in ours.counts for result in results for ours in result.ours)
    lines = []
    for result in results:
        for ours in result.ours:
            counts = ours.counts
            contestants = (ours, *result.peers)
            memory = [
                " / ".join(show_bytes(timing.counts[name]) for timing in contestants)
                for name in ("saved_bytes", "peak_bytes")
            ]
            work = [f"{counts['flops'] / 1e9:.3g} G", show_bytes(counts["bytes"])]
            work.append(f"{counts['flops'] / counts['bytes']:.3g}")
            if result.direction == "fwd":
                memory[0] = ""  # measured without gradients: nothing is saved
            if on_host:
                spent = (timing.counts.get("host_seconds") for timing in contestants)
                memory.append(" / ".join("" if s is None else show_seconds(s) for s in spent))
            lines.append(
                [*_names(result, ours), *work, f"{100 * counts['fraction_of_ceiling']:.2g} %", *memory]
            )
    header = ["case", "dtype", "pass", "backend", "FLOP", "bytes", "FLOP/byte", "of ceiling"]
    header += ["saved: ours / peers", "peak: ours / peers"] + ["host: ours / peers"] * on_host
    return _table(header, lines, 4)


def batch_table(results: list[Result]) -> list[str]:
    """The largest batch that fits into the GPU's memory, of every contestant for which it was looked for."""
    lines = []
    for result in results:
        for timing in (*result.ours, *result.peers):
            if "largest_batch" in timing.counts:
                lines.append([*_names(result, timing), str(timing.counts["largest_batch"])])
    return _table(["case", "dtype", "pass", "backend", "largest batch"], lines, 4) if lines else []


def sweep_table(results: list[Result]) -> list[str]:
    """Time and tokens per second of the rows that were measured without all peers."""
    lines = []
    for result in results:
        for timing in (*result.ours, *result.peers):
            rate = f"{timing.counts['tokens'] / timing.median / 1e6:.3g} M"
            lines.append([*_names(result, timing), show_seconds(timing.median), rate])
    return _table(["case", "dtype", "pass", "backend", "time", "tokens/s"], lines, 4)


def _ceilings(run: Run) -> list[str]:
    lines = [["copy (read + written)", f"{run.ceilings['copy'] / 1e9:.3g} GB/s"]]
    for dtype, rate in run.ceilings["matmul"].items():
        lines.append([f"torch.mm {dtype}", f"{rate / 1e12:.3g} TFLOP/s"])
    tiles = run.ceilings["tiles"]
    if tiles is not None:
        known = isinstance(tiles, float)
        lines.append(["tile unit, bf16", f"{tiles / 1e12:.3g} TFLOP/s" if known else f"unknown: {tiles}"])
    return _table(["ceiling", "measured"], lines, 1)


def machine_line(run: Run) -> str:
    """Processor or GPU, versions, commit and date of a run."""
    machine = run.machine
    chip = machine.get("gpu") or f"{machine['processor']} ({machine['isa']}), {machine['threads']} threads"
    names = ("jair_kernels", "torch", "triton", "cuda", "python")
    versions = ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name))
    state = " with local changes" if run.commit.get("dirty") else ""
    return f"{chip}. {versions}. Commit {run.commit.get('id', 'unknown')[:12]}{state}, {run.date[:10]}."


_METHOD = """\
Medians; the contestants of a row take turns call by call on the same inputs. The speed-up is over the fastest
of eager PyTorch (the reference in the same dtype), torch.compile of it, and where there is attention the same
two with PyTorch's own attention inside (sdpa, compile_sdpa); "tie": the middle halves of the two samples
overlap. Bytes are the least that must cross memory. "Of ceiling": the time that the rates below, measured in
the same run, allow, over the time taken. Saved: what autograd keeps for the backward beside inputs and
parameters. Peak: the most that PyTorch's allocator gave out at once during a call; our CPU kernels also keep
a working memory for each thread, which it does not see. On a GPU times are the device's, launches hidden, but
those of JAIR.generate, for which somebody waits, are the wall clock's; host: what a call's own code takes
there, which small calls wait for.
JAIR has random weights and looks at photographs."""


def notes(run: Run) -> list[str]:
    """What has to be known of a machine to read its goals, and of its peers."""
    without_tiles = run.device == "cpu" and run.machine["isa"] != "amx"
    told = ["The goals are those of a CPU with AMX tiles, which this one has not."] * without_tiles
    timings = [timing for result in run.results for timing in result.peers]
    modes = sorted({t.counts["compile_mode"] for t in timings if "compile_mode" in t.counts})
    return told + [f"torch.compile ran in mode {' and '.join(modes)}."] * bool(modes)


def _by_op(table: Callable[[list[Result]], list[str]], results: list[Result]) -> list[list[str]]:
    """A heading and a table for every op."""
    parts = []
    for op in dict.fromkeys(result.op for result in results):
        parts += [[f"### {op}"], table([result for result in results if result.op == op])]
    return parts


def render(run: Run, images: list[str]) -> str:
    """The whole report as Markdown."""
    compared = [result for result in run.results if result.complete and result.ours]
    sweep = [result for result in run.results if not result.complete and result.ours]
    parts = [[f"# {run.machine['kind']}"], [machine_line(run)], [_METHOD]]
    parts += [[note] for note in notes(run)]
    parts += [[f"![{_CAPTIONS[name]}]({name})"] for name in images[:1]]
    parts += [["## Speed"], *_by_op(speed_table, compared)]
    parts += [[f"![{_CAPTIONS[name]}]({name})"] for name in images[1:]]
    parts += [["## Work and memory"], *_by_op(cost_table, compared), ["## Ceilings"], _ceilings(run)]
    batches = batch_table(run.results)
    parts += [["## The largest batch that fits", "", *batches]] if batches else []
    if sweep:
        parts += [["## Curves, without torch.compile"], *_by_op(sweep_table, sweep)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def write(source: Path, folder: Path) -> str:
    """Report and plots of a JSON file into a folder; the report's text."""
    run = load(source)
    folder.mkdir(parents=True, exist_ok=True)
    text = render(run, plots.draw(run, folder))
    (folder / "README.md").write_text(text)
    return text


def write_costs(folder: Path) -> str:
    """The model's cost tables, exact counts, into a folder; their text, or why there are none."""
    try:
        from jair import cost_report, cost_tables

        return cost_report.write(cost_tables.count(), folder)
    except ImportError as error:
        return f"The model's costs are not counted: {error}\n"


def main(arguments: list[str] | None = None) -> None:
    """Report on a run; with --commit also keep it as the result of its kind of machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "json", nargs="?", type=Path, default=NEW, help="pytest-benchmark's JSON (default: the last run)"
    )
    parser.add_argument("--commit", action="store_true", help="copy it to <results>/<kind of machine>/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the committed runs")
    parser.add_argument(
        "--cost",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also count what the model costs (minutes)",
    )
    options = parser.parse_args(arguments)
    if not options.json.exists():
        if options.json != NEW or options.commit or not options.cost:
            parser.error(f"{options.json}: no such file; run make bench first")
        print("Nothing has been timed yet (make bench). What the model costs:\n")
        print(write_costs(NEW.parent / "cost"))
        return
    folder = options.json.parent
    if options.commit:
        folder = options.results / load(options.json).machine["kind"]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.json, folder / "benchmarks.json")
    print(write(options.json, folder))
    if options.cost:
        print(write_costs(options.results / "cost" if options.commit else folder / "cost"))
    if options.commit and options.results == RESULTS:
        from benchmarks import readme

        readme.update()
    print(f"written to {folder}")


if __name__ == "__main__":
    main()
