"""What the pages of the experiments have in common: results by seed, spreads, Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.runs import Result

PAGE = "README.md"


def load(folder: Path, key: str) -> dict[str, list[Result]]:
    """The finished runs of FOLDER/runs by their value of `key`, each list in the order of the seeds.

    Hidden files are not read: another process may be writing them.

    Raises:
        ValueError: there are none.
    """
    found = [json.loads(path.read_text()) for path in (folder / "runs").glob("[!.]*.json")]
    if not found:
        raise ValueError(f"{folder}: expected at least one finished run, got none")
    by_key: dict[str, list[Result]] = {}
    for result in sorted(found, key=lambda result: (str(result[key]), result["seed"])):
        by_key.setdefault(result[key], []).append(result)
    return by_key


def provenance(results: Sequence[Result], left_out: Iterable[str] = ()) -> str:
    """Settings, machines and commits in a line; of the settings those of the first result."""
    settings = {key: value for key, value in results[0]["settings"].items() if key not in left_out}
    told = ", ".join(f"{key} {value}" for key, value in settings.items())
    machines = sorted({result["machine"] for result in results})
    commits = sorted({result["commit"][:12] for result in results})
    return f"Settings: {told}. Machine: {'; '.join(machines)}. Commit: {', '.join(commits)}."


def spread(values: Sequence[float], scale: float = 1, digits: int = 1) -> str:
    """Mean (lowest to highest), times `scale`; nothing of no values."""
    if not values:
        return ""
    low, mean, high = (scale * value for value in (min(values), statistics.fmean(values), max(values)))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines; the first row is its header, the first column its names."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:])]
