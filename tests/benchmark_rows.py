"""Results of pytest-benchmark that were never measured, for the tests of what reads them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed jair_kernels goes before the source tree

from benchmarks import contestants
from benchmarks.shapes import Case, Group


def row(
    case: Case, dtype: str, direction: str, backend: str, median: float, op: str = "fused_tokenlearner"
) -> dict[str, Any]:
    """The row of one contestant."""
    info = {"op": op, "case": str(case), "dtype": dtype, "direction": direction, "backend": backend}
    counts = contestants.counts(Group(op, case, dtype, direction))
    memory = {"saved_bytes": 418_816, "peak_bytes": 2_000_000, "fraction_of_ceiling": 0.25}
    stats = {"q1": 0.99 * median, "median": median, "q3": 1.01 * median, "rounds": 100}
    return {"extra_info": info | counts | memory | {"tokens": case.b * case.n}, "stats": stats}


def group_of(case: Case, dtype: str, direction: str, **medians: float) -> list[dict[str, Any]]:
    """A row for each contestant by name."""
    return [row(case, dtype, direction, backend, median) for backend, median in medians.items()]


def make_document(*groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of a run."""
    matmul = {"bf16": 1e12, "fp16": 1e11, "fp32": 2e11}
    return {
        "machine_info": {
            "kind": "cpu-avx512",
            "processor": "A processor",
            "isa": "avx512",
            "threads": 2,
            "python": "3.12.1",
            "torch": "2.13.0",
            "triton": None,
            "jair_kernels": "0.1.0",
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-01-02T03:04:05",
        "ceilings": {"copy": 3e10, "matmul": matmul, "tiles": "no tile unit in use"},
        "benchmarks": [row for group in groups for row in group],
    }
