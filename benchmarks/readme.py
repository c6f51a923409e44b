"""The measured numbers in the README: what stands between its markers comes from the committed runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks import shapes
from benchmarks.report import machine_line, notes, show_bytes, speed_table
from benchmarks.rows import RESULTS, Run, load
from jair import cost_report

README = Path(__file__).parents[1] / "README.md"


def section(run: Run) -> str:
    """One kind of machine: the speed of fused_tokenlearner, what it keeps for the backward, and the speed of
    what fuses modalities where that was measured.
    """
    measured = [r for r in run.results if r.complete and r.ours and not r.case.endswith(",photos")]
    pooling = [r for r in measured if r.op == "fused_tokenlearner"]
    fusion = [r for r in measured if r.op in (*shapes.FUSION_OPS, *shapes.MODEL_OPS)]
    kind = run.machine["kind"]
    lines = [" ".join([f"**{kind}**: {machine_line(run)}", *notes(run)]), "", *speed_table(pooling), ""]
    lines += [*speed_table(fusion, with_op=True), ""] if fusion else []
    for result in pooling:
        if (result.case, result.dtype, result.direction) == ("16x196x768,h64,k8", "fp32", "fwdbwd"):
            ours, eager = result.ours[0].counts["saved_bytes"], result.timings["eager"].counts["saved_bytes"]
            kept = f"{show_bytes(ours)}, eager PyTorch {show_bytes(eager)}"
            lines += [f"Kept for the backward at {result.case} in fp32, beside x and parameters: {kept}.", ""]
    lines.append(
        f"All rows, those that lose too: [benchmarks/results/{kind}](benchmarks/results/{kind}/README.md)."
    )
    return "\n".join(lines)


def cost_section(folder: Path) -> str:
    """The picture of the model's costs, the table of fusions, and what they do not say."""
    costs = cost_report.read(folder)
    rows = [row for row in costs if row.table == "Fusion"]
    link = f"benchmarks/results/{folder.name}"
    picture = f"![Operations and memory of every fusion against image size]({link}/{cost_report.PLOT})"
    more = f"Counted, not timed; every table: [{link}]({link}/README.md). What they do not say:"
    return "\n\n".join([picture, cost_report.table_of(rows), more, cost_report.limits(costs)])


def update(readme: Path = README, results: Path = RESULTS) -> None:
    """Write the sections anew from every committed run and from the committed counts."""
    runs = [load(path) for path in sorted(results.glob("*/benchmarks.json")) if path.parent.name != "new"]
    text = readme.read_text()
    text = _replaced(text, "benchmarks", "\n\n".join(section(run) for run in runs) or "Not measured yet.")
    if (results / "cost" / "cost.json").exists():
        text = _replaced(text, "cost", cost_section(results / "cost"))
    readme.write_text(text)


def _replaced(text: str, name: str, body: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{body}\n{end}{rest.split(end)[1]}"
