"""The measured numbers in the README: what stands between its markers comes from the committed runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import machine_line, show_bytes, speed_table
from benchmarks.rows import RESULTS, Run, load

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def section(run: Run) -> str:
    """Speed of fused_tokenlearner and what it keeps for the backward, on one kind of machine."""
    results = [r for r in run.results if r.op == "fused_tokenlearner" and r.complete and r.ours]
    kind = run.machine["kind"]
    lines = [f"**{kind}**: {machine_line(run)}", "", *speed_table(results), ""]
    for result in results:
        if (result.case, result.dtype, result.direction) == ("16x196x768,h64,k8", "fp32", "fwdbwd"):
            ours, eager = result.ours[0].counts["saved_bytes"], result.timings["eager"].counts["saved_bytes"]
            kept = f"{show_bytes(ours)}, eager PyTorch {show_bytes(eager)}"
            lines += [f"Kept for the backward at {result.case} in fp32, beside x and parameters: {kept}.", ""]
    lines.append(
        f"All rows, those that lose too: [benchmarks/results/{kind}](benchmarks/results/{kind}/README.md)."
    )
    return "\n".join(lines)


def update(readme: Path = README, results: Path = RESULTS) -> None:
    """Write the section anew from every committed run."""
    runs = [load(path) for path in sorted(results.glob("*/benchmarks.json")) if path.parent.name != "new"]
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    body = "\n\n".join(section(run) for run in runs) or "Not measured yet."
    readme.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}")
