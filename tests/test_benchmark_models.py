"""The benchmarks of the whole model, as far as they go without a GPU. Nothing is timed here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed jair_kernels goes before the source tree

from benchmarks import conftest, contestants, measure, model, report, rows, shapes
from benchmarks.model import ModelCase
from benchmarks.shapes import Group
from jair import cost as jair_cost

TINY = ModelCase(2, "tiny", image_size=64)


def tiny_step(**more: Any) -> model.Problem:
    pytest.importorskip("transformers", reason="the extra 'models' is not installed")
    problem = contestants.problem_of(Group("JAIR", TINY, "fp32", "fwdbwd", **more), "cpu", 0)
    assert isinstance(problem, model.Problem)
    return problem


class Calls(TorchFunctionMode):
    """Names of the functions of torch that are called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_model_is_measured_with_its_parts_alike() -> None:
    pytest.importorskip("transformers", reason="the extra 'models' is not installed")
    for op, direction in (("JAIR", "fwdbwd"), ("JAIR.generate", "fwd")):
        group = Group(op, TINY, "fp32", direction, shapes.MODEL_PEERS)
        problem = contestants.problem_of(group, "cpu", 0)
        calls = Calls()
        with calls:
            results = {name: problem.call(problem.function(name))(0) for name in ("eager", "sdpa")}
        assert "softmax" in calls.names
        assert "scaled_dot_product_attention" in calls.names
        assert "isfinite" not in calls.names  # peers pay for no promise of ours
        results["cpu"] = problem.call(problem.function("cpu"))(0)
        for name in ("sdpa", "cpu"):
            assert contestants.disagreement(group, results[name], results["eager"]) is None
    assert len(results["cpu"][0]) == 2
    assert contestants.counts(group)["flops"] == 4 * jair_cost.macs(TINY.config(), 64, 16).total


def test_goals_are_those_of_the_device_that_ours_ran_on() -> None:
    def goal(op: str, case: ModelCase | shapes.Case, direction: str, *contestants: str) -> float | None:
        timings = {name: rows.Timing(name, 1, 1, 1, 3, {}) for name in contestants}
        return rows.Result(op, str(case), "bf16", direction, timings).target()

    assert goal("JAIR.generate", shapes.ANSWER, "fwd", "cpu", "eager") == 1.0
    assert goal("JAIR.generate", shapes.ANSWER, "fwd", "triton", "eager") == 3.0
    assert goal("JAIR", ModelCase(64), "fwdbwd", "triton", "eager") == 1.15
    assert goal("JAIR", ModelCase(8), "fwdbwd", "cpu", "eager") == 1.15
    assert goal("JAIR", ModelCase(64), "fwdbwd", "cpu", "eager") is None
    assert goal("fused_tokenlearner", shapes.VIT, "fwd", "cuda", "triton", "eager") is None
    assert goal("JAIR", ModelCase(64), "fwdbwd", "eager") is None


class Clock:
    """A GPU that takes a second a kernel, behind a host that launches it in no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queued, self.now = 0, 0.0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)

    def wait(self) -> None:
        self.now += self.queued
        self.queued = 0

    def launch(self, index: int) -> tuple[torch.Tensor, ...]:
        self.queued += 3
        return ()


def test_an_answer_is_timed_by_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Group("JAIR.generate", shapes.ANSWER, "bf16", "fwd").latency
    assert not Group("JAIR", shapes.GPU_STEP, "bf16", "fwdbwd").latency
    clock = Clock(monkeypatch)
    clock.launch(0)  # what was queued before does not count
    timed = measure.take_turns({"ours": clock.launch}, "cuda", 1.0, latency=True)
    assert set(timed["ours"]) == {3.0}


@pytest.mark.parametrize("room", [0, 1, 2, 3, 37, 63, 64, 65, 99, 100, 1000])
def test_the_largest_batch_that_fits(room: int) -> None:
    tried = []

    def step(batch: int) -> None:
        tried.append(batch)
        if batch > room:
            raise torch.cuda.OutOfMemoryError(f"no room for {batch}")

    assert measure.largest_batch(step, most=100) == min(room, 100)
    assert max(tried) <= 100
    assert len(tried) == len(set(tried)) <= 14


def test_an_error_that_is_not_of_memory_is_raised() -> None:
    def step(batch: int) -> None:
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure.largest_batch(step)


def test_the_batch_of_a_model_is_that_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of other sizes than the case's, really computed; above 5 samples there is no room."""
    problem, sizes, call = tiny_step(), [], model.Problem.call

    def watched(self: model.Problem, run: Any) -> Any:
        def both(index: int) -> Any:
            sizes.append(self.case.b)
            if self.case.b > 5:
                raise torch.cuda.OutOfMemoryError
            assert all(len(given) == self.case.b for given in self.inputs.values())
            return call(self, run)(index)

        return both

    monkeypatch.setattr(model.Problem, "call", watched)
    assert problem.largest_batch("cpu") == 5
    assert sizes == [1, 2, 4, 8, 6, 5]


def test_contestants_that_are_not_compiled_look_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_step()
    found = {"cpu": 9, "eager": 5, "sdpa": 7}
    monkeypatch.setattr(model.Problem, "largest_batch", lambda self, backend: found[backend])
    session = conftest.Session("cpu", full=True, budget=0.0)
    group = Group("JAIR", TINY, "fp32", "fwdbwd", shapes.MODEL_PEERS, finds_batch=True)
    samples = session._measure(group)
    assert {name: sample.largest_batch for name, sample in samples.items()} == found
    timings = {name: rows.Timing(name, 1, 1, 1, 3, {"largest_batch": batch}) for name, batch in found.items()}
    lines = report.batch_table([rows.Result(*group.key, timings)])
    assert [line.split(" | ")[3:] for line in lines[2:]] == [
        ["cpu", "9 |"],
        ["eager", "5 |"],
        ["sdpa", "7 |"],
    ]
    assert report.batch_table([]) == []


def test_full_runs_on_a_gpu_look_for_the_batch_of_ours_and_of_concat() -> None:
    looking = [g for g in shapes.groups("JAIR", "cuda", full=True) if g.finds_batch]
    assert {g.case.fusion for g in looking} == {"joint_adaptive", "concat"}
    others = [("JAIR", "cuda", False), ("JAIR", "cpu", True), ("JAIR.generate", "cuda", True)]
    assert not [g for op, device, full in others for g in shapes.groups(op, device, full) if g.finds_batch]
