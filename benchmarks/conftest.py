"""Options and fixtures: a row of pytest-benchmark for every contestant of every measurement."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import jair_kernels
from benchmarks import ceilings, contestants, fusion, machine, measure, model, rows, shapes
from benchmarks.shapes import Group
from jair_kernels.testing import required

CLOCK = measure.RecordedClock()
_SESSION = pytest.StashKey["Session"]()
_KEPT_STATS = ("min", "q1", "median", "q3", "max", "iqr", "rounds")


@dataclass
class Sample:
    """What is known of one contestant of a group: why it is skipped, what it did wrong, or its numbers."""

    reason: str | None = None
    fault: str | None = None
    kind: str = ""  # of PyTorch's own attention: which of its kernels ran
    seconds: list[float] = field(default_factory=list)
    saved_bytes: int = 0
    peak_bytes: int = 0
    host_seconds: float | None = None  # on a GPU
    largest_batch: int | None = None


class Session:
    """Measurements of this run, each made when its first row asks for it."""

    def __init__(self, device: str, full: bool, budget: float) -> None:
        self.device, self.full, self.budget = device, full, budget
        self.ceilings: dict[str, Any] = {}
        self.recorded = 0
        self._measured: dict[Group, dict[str, Sample]] = {}

    def ceiling_of(self, group: Group, seconds: float) -> float:
        """fraction_of_ceiling of a call that takes this long."""
        if not self.ceilings:
            self.ceilings = ceilings.measure(self.device, shapes.DTYPES)
        count = contestants.counts(group)
        return ceilings.fraction(self.ceilings, group.dtype, count["flops"], count["bytes"], seconds)

    def sample(self, group: Group, backend: str) -> Sample:
        """The contestant's result, the whole group measured together."""
        if group not in self._measured:
            self._measured[group] = self._measure(group)
        return self._measured[group][backend]

    def _measure(self, group: Group) -> dict[str, Sample]:
        torch._dynamo.reset()  # or the shapes seen so far become dynamic, and the peer slower
        working_set = ceilings.working_set(self.device)
        problem = contestants.problem_of(group, self.device, working_set, tuned=self.full)
        samples, calls = self._tried(group, problem)
        timed = measure.take_turns(calls, self.device, self.budget, latency=group.latency)
        for backend, seconds in timed.items():
            samples[backend].seconds = seconds
            if self.device == "cuda":
                samples[backend].host_seconds = measure.host_seconds(calls[backend])
        if group.finds_batch and isinstance(problem, model.Problem):
            # torch.compile would compile anew for every batch.
            for backend in calls.keys() - shapes.COMPILED.keys():
                samples[backend].largest_batch = problem.largest_batch(backend)
        return samples

    def _tried(
        self, group: Group, problem: contestants.AnyProblem
    ) -> tuple[dict[str, Sample], dict[str, measure.Call]]:
        """Every contestant after one call, and the calls of those that agree with eager PyTorch."""
        samples: dict[str, Sample] = {}
        calls: dict[str, measure.Call] = {}
        expected: tuple[torch.Tensor, ...] | None = None
        # Eager PyTorch first: the others are held against its result.
        for backend in (*group.peers, *shapes.OURS[self.device]):
            samples[backend] = Sample(self._why_not(group, problem, backend))
            if samples[backend].reason:
                continue
            run = problem.function(backend)
            call = problem.call(run)
            kind = fusion.SdpaKind()
            try:
                with kind if backend == "sdpa" else nullcontext():
                    result = call(0)
            except RuntimeError as error:
                told = f"{backend} failed: {str(error).strip().splitlines()[0]}"
                # A machine without a compiler has no torch.compile; a failure of ours is ours.
                excused = backend in shapes.COMPILED
                samples[backend] = Sample(reason=told) if excused else Sample(fault=told)
                continue
            samples[backend].kind = str(kind) if backend == "sdpa" else ""
            expected = result if expected is None else expected
            samples[backend].fault = contestants.disagreement(group, result, expected)
            if samples[backend].fault:
                continue
            samples[backend].peak_bytes = measure.peak_bytes(call, self.device)
            if group.direction == "fwdbwd":
                samples[backend].saved_bytes = measure.saved_bytes(
                    run, problem.arguments(0), problem.parameters.values()
                )
            calls[backend] = call
        return samples, calls

    def _why_not(self, group: Group, problem: contestants.AnyProblem, backend: str) -> str | None:
        isa = machine.cpu_isa()
        in_hardware = isa == "amx" or (isa == "avx512_bf16" and group.dtype == "bf16")
        if group.dtype != "fp32" and self.device == "cpu" and not in_hardware:
            slow = f"without instructions for it PyTorch's {group.dtype} products take"
            if group.op in shapes.MODEL_OPS:
                return f"{slow} minutes for a step of the model"
            if not self.full and group.op in shapes.COMPOSED_OPS:
                return f"{slow} seconds; --full measures them"
        if isinstance(problem, contestants.Problem):
            mine = backend not in group.peers
            given = required(group.op, {**problem.arguments(0)})
            return jair_kernels.why_not(group.op, backend, *given) if mine else None
        return None if backend in ("cpu", "triton", *group.peers) else "no model runs on it"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jair-kernels benchmarks")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="what the benchmarks run on")
    group.addoption("--full", action="store_true", help="also the rows that do not fit into ten minutes")
    group.addoption("--threads", type=int, default=2, help="threads of PyTorch on the CPU (default: 2)")
    group.addoption("--group-seconds", type=float, default=0.8, help="time for each group of contestants")


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its options
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: deselected unless --full is given")
    torch.set_num_threads(config.getoption("--threads"))
    chosen = (config.getoption(name) for name in ("--device", "--full", "--group-seconds"))
    config.stash[_SESSION] = Session(*chosen)
    if config.option.benchmark_json is None and not config.option.collectonly:
        rows.NEW.parent.mkdir(parents=True, exist_ok=True)
        rows.NEW.unlink(missing_ok=True)  # or a run without rows would be reported as the one before it
        config.option.benchmark_json = str(rows.NEW)
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "rounds"]
    warnings.filterwarnings("ignore", message="Online softmax is disabled", category=UserWarning)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test per group and contestant; "op" is a constant of the module."""
    if "backend" not in metafunc.fixturenames:
        return
    device, full = metafunc.config.getoption("--device"), metafunc.config.getoption("--full")
    parameters = []
    ops = getattr(metafunc.module, "OPS", None) or (metafunc.module.OP,)
    for group in (group for op in ops for group in shapes.groups(op, device, full)):
        for backend in (*shapes.OURS[device], *group.peers):
            marks = [pytest.mark.benchmark(timer=CLOCK.now, group=str(group))]
            marks += [pytest.mark.full] if group.full else []
            name = f"{group.case}-{group.dtype}-{group.direction}-{backend}"
            parameters.append(pytest.param(group, backend, id=name, marks=marks))
    metafunc.parametrize(("group", "backend"), parameters)


def _rank(item: pytest.Item) -> tuple[bool, bool, int, int]:
    """The first row of every op, then the second, curves last: an interrupted run keeps what it has.

    On a CPU the model comes last of all: it leaves so much free memory with the C library that large
    results behind it are no longer new pages, and rows differ from what they are by themselves.
    """
    group = getattr(item, "callspec", None) and item.callspec.params.get("group")  # type: ignore[attr-defined]
    if group is None:
        return False, False, 0, 0
    device = item.config.getoption("--device")
    alters_memory = device == "cpu" and group.op in shapes.MODEL_OPS
    on_curve = isinstance(group.case, shapes.Case) and shapes.only_on_curve(group.case, group.dtype, device)
    rows = dict.fromkeys((g.case, g.dtype) for g in shapes.groups(group.op, device, full=True))
    return alters_memory, on_curve, list(rows).index((group.case, group.dtype)), shapes.OPS.index(group.op)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Group, str], None]:
    """Make this test the row of one contestant."""
    session = request.config.stash[_SESSION]

    def make_row(group: Group, backend: str) -> None:
        if session.device == "cuda" and not torch.cuda.is_available():
            pytest.skip("--device cuda: no CUDA device is available")
        sample = session.sample(group, backend)
        if sample.reason:
            pytest.skip(f"{group} {backend}: {sample.reason}")
        if sample.fault:
            pytest.fail(f"{group} {backend}: {sample.fault}")
        median = statistics.median(sample.seconds)
        benchmark.extra_info.update(
            op=group.op,
            case=str(group.case),
            dtype=group.dtype,
            direction=group.direction,
            backend=f"{backend}_{sample.kind}" if sample.kind else backend,
            tokens=group.case.b * group.case.n,
            **contestants.counts(group),
            saved_bytes=sample.saved_bytes,
            peak_bytes=sample.peak_bytes,
            fraction_of_ceiling=session.ceiling_of(group, median),
        )
        if backend in shapes.COMPILED:
            benchmark.extra_info["compile_mode"] = contestants.compile_mode(
                group, session.device, session.full
            )
        for name in ("host_seconds", "largest_batch"):
            if getattr(sample, name) is not None:
                benchmark.extra_info[name] = getattr(sample, name)
        session.recorded += 1
        CLOCK.load(sample.seconds)
        benchmark.pedantic(CLOCK.replay, rounds=len(sample.seconds))

    return make_row


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # among others the host's name
    machine_info.update(machine.describe(config.getoption("--device")))


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    kept: dict[str, Any] = {k: commit_info[k] for k in ("id", "time", "dirty") if k in commit_info}
    commit_info.clear()
    commit_info.update(kept)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Medians, spread and counts are kept; the durations of all rounds are not."""
    output_json["ceilings"] = config.stash[_SESSION].ceilings
    for row in output_json["benchmarks"]:
        for key in ("params", "param", "options"):
            row.pop(key, None)
        row["stats"] = {key: row["stats"][key] for key in _KEPT_STATS}


def _file_of(given: Any) -> Path:
    """Where the JSON lies: pytest-benchmark keeps a path, or in older versions the file, closed."""
    return Path(given if isinstance(given, str | Path) else given.name)


@pytest.hookimpl(trylast=True)  # below the tables of pytest-benchmark
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.stash[_SESSION].recorded:
        return
    path = _file_of(config.option.benchmark_json)
    terminalreporter.section("speed-up over the fastest peer", sep="-")
    for line in rows.summary(rows.load(path)):
        terminalreporter.write_line(line)
