"""Hold a run against the committed one of its kind of machine: ``python -m benchmarks.compare [JSON]``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rows import NEW, RESULTS, Run, load

TOLERANCE = 0.15


@dataclass
class Comparison:
    """A line for every row both runs have, and what is wrong."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def compare(old: Run, new: Run) -> Comparison:
    """Speed-ups of ours over the fastest peer, old against new.

    A fault: a speed-up that fell by more than 15 %, or a row of ours that is gone although its peers were
    measured. Absolute times are not compared: they change with the machine's load, for all contestants alike.
    """
    outcome = Comparison()
    measured = {result.key: result for result in new.results}
    for before in old.results:
        after = measured.get(before.key)
        if after is None or not (before.complete and after.complete):
            continue
        for timing in before.ours:
            name = f"{' '.join(before.key)} {timing.backend}"
            if timing.backend not in after.timings:
                outcome.faults.append(f"{name}: not measured, although its peers were")
                continue
            was, now = before.speedup(timing), after.speedup(after.timings[timing.backend])
            line = f"{name}: {was:.2f}x -> {now:.2f}x ({100 * (now / was - 1):+.0f} %)"
            outcome.lines.append(line)
            if now < (1 - TOLERANCE) * was:
                outcome.faults.append(line)
    return outcome


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; 1 if a ratio regressed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("json", nargs="?", type=Path, default=NEW, help="the new run (default: the last)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the committed runs")
    options = parser.parse_args(arguments)
    if not options.json.exists():
        parser.error(f"{options.json}: no such file; run make bench first")
    new = load(options.json)
    committed = options.results / new.machine["kind"] / "benchmarks.json"
    if not committed.exists():
        print(f"nothing to compare with: no committed run of a {new.machine['kind']}")
        return 0
    outcome = compare(load(committed), new)
    print("\n".join(outcome.lines))
    if not outcome.lines and not outcome.faults:
        outcome.faults.append("the two runs have no row in common")
    for fault in outcome.faults:
        print(f"REGRESSED {fault}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
