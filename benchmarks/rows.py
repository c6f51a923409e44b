"""Results as the report, the comparison and the terminal summary read them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.goals import TARGETS
from benchmarks.shapes import DIRECTIONS, OPS, OURS, peers_of

RESULTS = Path(__file__).parent / "results"
NEW = RESULTS / "new" / "benchmarks.json"
_OURS = tuple(backend for backends in OURS.values() for backend in backends)


@dataclass(frozen=True)
class Timing:
    """One contestant: what computed, seconds (quartiles and median) and its counts."""

    backend: str
    q1: float
    median: float
    q3: float
    rounds: int
    counts: dict[str, Any]


@dataclass
class Result:
    """One group of contestants that took turns on the same inputs."""

    op: str
    case: str
    dtype: str
    direction: str
    timings: dict[str, Timing] = field(default_factory=dict)  # by contestant

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.op, self.case, self.dtype, self.direction

    @property
    def ours(self) -> list[Timing]:
        return [self.timings[name] for name in _OURS if name in self.timings]

    @property
    def peers(self) -> list[Timing]:
        return [timing for name, timing in self.timings.items() if name not in _OURS]

    @property
    def complete(self) -> bool:
        """Whether every peer was measured: only then is there a fastest one to be compared with."""
        return all(peer in self.timings for peer in peers_of(self.op))

    def fastest_peer(self) -> Timing:
        return min(self.peers, key=lambda timing: timing.median)

    def speedup(self, timing: Timing) -> float:
        """Median of the fastest peer over this median."""
        return self.fastest_peer().median / timing.median

    def verdict(self, timing: Timing) -> str:
        """ "tie" where the middle halves of the two samples overlap, else "faster" or "slower"."""
        peer = self.fastest_peer()
        if timing.q1 <= peer.q3 and peer.q1 <= timing.q3:
            return "tie"
        return "faster" if timing.median < peer.median else "slower"

    def target(self) -> float | None:
        """The speed-up aimed at on the device that ours ran on."""
        goals = (TARGETS[device] for device, ours in OURS.items() if not self.timings.keys().isdisjoint(ours))
        pair = next(goals, {}).get((self.op, self.case, self.dtype))
        return pair and pair[DIRECTIONS.index(self.direction)]


@dataclass
class Run:
    """One JSON file of pytest-benchmark."""

    machine: dict[str, Any]
    commit: dict[str, Any]
    date: str
    ceilings: dict[str, Any]
    results: list[Result]

    @property
    def device(self) -> str:
        return "cuda" if "gpu" in self.machine else "cpu"


def _contestant(backend: str) -> str:
    """The contestant of a row: "sdpa_flash" names the kernel of PyTorch's own attention that ran."""
    return "sdpa" if backend.startswith("sdpa") else backend


def parse(document: dict[str, Any]) -> Run:
    """A run from pytest-benchmark's JSON; within an op, groups in the order in which they were measured."""
    results: dict[tuple[str, ...], Result] = {}
    for row in document["benchmarks"]:
        info, stats = row["extra_info"], row["stats"]
        key = tuple(info[name] for name in ("op", "case", "dtype", "direction"))
        timing = Timing(info["backend"], stats["q1"], stats["median"], stats["q3"], stats["rounds"], info)
        results.setdefault(key, Result(*key)).timings[_contestant(timing.backend)] = timing
    return Run(
        document["machine_info"],
        document["commit_info"],
        document["datetime"],
        document["ceilings"],
        sorted(results.values(), key=lambda result: OPS.index(result.op)),
    )


def load(path: Path) -> Run:
    """The run in a file."""
    return parse(json.loads(path.read_text()))


def show_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def summary(run: Run) -> Iterable[str]:
    """A line for each of our rows that has all its peers."""
    for result in run.results:
        if not result.complete:
            continue
        for ours in result.ours:
            peer = result.fastest_peer()
            target = result.target()
            yield (
                f"{result.op:23} {result.case:25} {result.dtype:5} {result.direction:7} {ours.backend:7}"
                f" {show_seconds(ours.median):>8}   {result.speedup(ours):5.2f}x {result.verdict(ours):6}"
                f" over {peer.backend} {show_seconds(peer.median):>8}"
                + (f"   target {target:g}x" if target else "")
            )
