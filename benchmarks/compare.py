"""Hold a run against the committed one of its kind of machine: ``python -m benchmarks.compare [JSON]``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.rows import NEW, RESULTS, Result, Run, Timing, load
from benchmarks.shapes import OPS, groups

TOLERANCE = 0.15


@dataclass
class Comparison:
    """A line for every row both runs have, and what is wrong."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def compare(old: Run, new: Run) -> Comparison:
    """Speed-ups of ours over the fastest peer, old against new, of the peers that both runs have.

    A fault: a speed-up that fell by more than 15 %, or a row of ours that is gone; rows that only --full
    measures may all be absent. Absolute times are not compared: they change with the machine's load, for all
    contestants alike.
    """
    outcome = Comparison()
    measured = {result.key: result for result in new.results}
    late = {row.key for op in OPS for row in groups(op, new.device, full=True) if row.full}
    optional = late if late.isdisjoint(measured) else set()
    for before in old.results:
        if before.key in measured:
            _compare(before, measured[before.key], outcome)
        elif before.key not in optional:
            outcome.faults += [f"{_name(before, timing)}: not measured" for timing in before.ours]
    return outcome


def _compare(before: Result, after: Result, outcome: Comparison) -> None:
    both = before.timings.keys() & after.timings.keys()
    old, new = (
        replace(result, timings={name: timing for name, timing in result.timings.items() if name in both})
        for result in (before, after)
    )
    for timing in before.ours:
        name = _name(before, timing)
        if timing.backend not in both:
            outcome.faults.append(f"{name}: not measured")
            continue
        if not old.peers:
            outcome.faults.append(f"{name}: no peer was measured in both runs")
            continue
        was, now = old.speedup(timing), new.speedup(new.timings[timing.backend])
        line = f"{name}: {was:.2f}x -> {now:.2f}x ({100 * (now / was - 1):+.0f} %)"
        outcome.lines.append(line)
        if now < (1 - TOLERANCE) * was:
            outcome.faults.append(line)


def _name(result: Result, timing: Timing) -> str:
    return f"{' '.join(result.key)} {timing.backend}"


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
