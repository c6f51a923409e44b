"""Time, saved bytes and peak bytes of contestants that take turns."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

Call = Callable[[int], tuple[torch.Tensor, ...]]
_MIN_ROUNDS, _MAX_ROUNDS = 11, 300
_WARM_UP = 3
_SLOW, _MIN_SLOW_ROUNDS = 4, 3  # of a group that has taken 4 budgets, 3 rounds will do
# About 4 ms, and 64 for calls of many launches: the GPU is still busy when the last of them has been queued.
_HIDE_LAUNCH_CYCLES, _MOST_HIDDEN_CYCLES = 8_000_000, 128_000_000


class RecordedClock:
    """A clock that shows durations measured before, so that each contestant is a row of pytest-benchmark.

    pytest-benchmark times a row alone, from its first round to its last; contestants must alternate call by
    call instead, because the machine's speed drifts. They are timed together, then every row replays its own.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._durations: Iterator[float] = iter(())

    def load(self, durations: Sequence[float]) -> None:
        """Durations of the rounds to come."""
        self._now, self._durations = 0.0, iter(durations)

    def now(self) -> float:
        """The timer handed to pytest-benchmark."""
        return self._now

    def replay(self) -> None:
        """One round: the clock moves by the next duration."""
        self._now += next(self._durations)


def _cpu_seconds(call: Call, index: int) -> float:
    start = time.perf_counter()
    call(index)
    return time.perf_counter() - start


def _wall_seconds(call: Call, index: int) -> float:
    """From the call to the end of its last kernel, launches and waiting for them included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call(index)
    torch.cuda.synchronize()
    return time.perf_counter() - start


class _CudaSeconds:
    """Device time of a call: the queue is kept busy before it, so launches of no contestant are seen."""

    def __init__(self) -> None:
        self._cycles: dict[Call, int] = {}  # for which it must be busy

    def __call__(self, call: Call, index: int) -> float:
        while True:
            cycles = self._cycles.setdefault(call, _HIDE_LAUNCH_CYCLES)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
            start.record()
            call(index)
            end.record()
            hidden = not start.query()
            torch.cuda.synchronize()
            if hidden or cycles >= _MOST_HIDDEN_CYCLES:
                return float(start.elapsed_time(end)) / 1e3
            self._cycles[call] = 2 * cycles


def host_seconds(call: Call) -> float:
    """Time of a call's own code, its kernels queued behind a GPU that is busy: the least of three calls."""
    spent = []
    for index in range(3):
        torch.cuda._sleep(_MOST_HIDDEN_CYCLES // 4)  # type: ignore[no-untyped-call]
        start = time.perf_counter()
        call(index)
        spent.append(time.perf_counter() - start)
        torch.cuda.synchronize()
    return min(spent)


def take_turns(
    calls: dict[str, Call], device: str, budget: float, *, latency: bool = False
) -> dict[str, list[float]]:
    """Seconds of every call; the contestants alternate call by call, for about `budget` seconds in all. On
    a GPU they are the device's, or with `latency` those of the wall clock.

    Every call has run before, when its result was compared. One that takes longer than the budget needs no
    more to be warm; others are called a few times more.
    """
    on_gpu = _wall_seconds if latency else _CudaSeconds()
    seconds = on_gpu if device == "cuda" else _cpu_seconds
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        samples = {name: [seconds(call, 0)] for name, call in calls.items()}
        if any(first <= budget for (first,) in samples.values()):
            _warm_up(calls, seconds, budget)
            samples = {name: [] for name in calls}
        start = time.perf_counter()
        for index in range(_MAX_ROUNDS):
            for name, call in calls.items():
                samples[name].append(seconds(call, index))
            rounds, spent = max(map(len, samples.values()), default=0), time.perf_counter() - start
            least = _MIN_ROUNDS if spent < _SLOW * budget else _MIN_SLOW_ROUNDS
            if rounds >= least and spent > budget:
                break
    finally:
        if collecting:
            gc.enable()
    return samples


def _warm_up(calls: dict[str, Call], seconds: Callable[[Call, int], float], budget: float) -> None:
    for call in calls.values():
        spent = 0.0
        for index in range(1, _WARM_UP):
            if spent > budget:
                break
            spent += seconds(call, index)


def saved_bytes(
    run: Callable[..., torch.Tensor],
    arguments: dict[str, torch.Tensor],
    parameters: Iterable[torch.Tensor] = (),
) -> int:
    """Bytes autograd keeps for the backward: unique storages, less those of arguments and parameters."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*arguments.values(), *parameters)}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(**arguments)
    del output
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(call: Call, device: str) -> int:
    """Most bytes allocated at once during a call, outputs and gradients included, inputs not."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profiler:
        call(0)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: float(e["ts"])):
        current += event["args"]["Bytes"]
        peak = max(peak, current)
    return peak


def largest_batch(step: Callable[[int], object], most: int = 8192) -> int:
    """The largest batch, of at most `most`, at which a step fits into the GPU's memory: it doubles, then
    bisects.
    """

    def fits(batch: int) -> bool:
        enough = True
        try:
            step(batch)
        except torch.cuda.OutOfMemoryError:
            enough = False
        gc.collect()
        torch.cuda.empty_cache()  # or blocks cut for this batch are in the way of the next
        return enough

    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
