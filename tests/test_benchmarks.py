"""The benchmark suite's own arithmetic: counts, contestants, cases. Nothing is timed here."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import jair_kernels

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed jair_kernels goes before the source tree

from benchmarks import (
    conftest,
    contestants,
    fusion,
    goals,
    machine,
    measure,
    report,
    rows,
    shapes,
)
from benchmarks.fusion import FusionCase
from benchmarks.inputs import photo_tokens
from benchmarks.shapes import PHOTOS, SINGLE, VIT, WIDE, Case, Group
from jair_kernels.tokenlearner import cost as learner_cost


@pytest.mark.parametrize(
    ("op", "dtype", "direction", "flops", "moved"),
    [
        ("fused_tokenlearner", "fp32", "fwd", 350_027_776, 10_225_664),
        ("fused_tokenlearner", "fp32", "fwdbwd", 1_050_083_328, 30_676_992),
        ("fused_tokenlearner", "bf16", "fwdbwd", 1_050_083_328, 15_338_496),
        ("fused_token_pool", "fp32", "fwd", 38_535_168, 10_127_360),
        ("fused_token_pool", "bf16", "fwdbwd", 115_605_504, 15_191_040),
        ("fused_tokenfuser", "fp32", "fwdbwd", 1_050_083_328, 49_944_576),
    ],
)
def test_counts_of_a_row(op: str, dtype: str, direction: str, flops: int, moved: int) -> None:
    assert contestants.counts(Group(op, VIT, dtype, direction)) == {"flops": flops, "bytes": moved}


def test_tokenlearner_saves_statistics_and_in_16_bits_the_hidden_layer() -> None:
    softmax, statistics, hidden = 16 * 8 * 2 * 4, 16 * 196 * 2 * 4, 16 * 196 * 64 * 2
    assert learner_cost.saved_bytes(16, 196, 768, 64, 8, torch.float32) == softmax + statistics == 26_112
    assert learner_cost.saved_bytes(16, 196, 768, 64, 8, torch.bfloat16) == 26_112 + hidden == 427_520
    over_half = learner_cost.saved_bytes(16, 196, 100, 64, 8, torch.bfloat16)
    assert over_half == 26_112


@pytest.mark.parametrize(
    ("op", "backend", "dtype", "expected"),
    [
        ("fused_tokenlearner", "cpu", "fp32", 26_112),
        ("fused_tokenlearner", "cpu", "bf16", 427_520),
        ("fused_tokenlearner", "eager", "fp32", 11_364_864),
        ("fused_token_pool", "cpu", "fp32", 1024),
        ("fused_token_pool", "eager", "fp32", 100_352),
        ("fused_tokenfuser", "cpu", "fp32", 25_088),
        ("fused_tokenfuser", "eager", "fp32", 11_364_864),
    ],
)
def test_saved_for_backward(op: str, backend: str, dtype: str, expected: int) -> None:
    group = Group(op, VIT, dtype, "fwdbwd")
    problem = contestants.Problem.build(group, "cpu", 0)
    arguments = problem.arguments(0)
    if backend != "eager":
        reason = jair_kernels.why_not(op, backend)
        if reason:
            pytest.skip(f"{op} {backend}: {reason}")
    assert measure.saved_bytes(problem.function(backend), arguments) == expected


def test_saved_bytes_counts_a_storage_once() -> None:
    x, w = torch.randn(64, 32, requires_grad=True), torch.randn(32, 16, requires_grad=True)

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        h = (x @ w).exp()  # keeps its result; x, w and the view of h add nothing
        return h[:32] * h[32:]

    assert measure.saved_bytes(run, {"x": x, "w": w}) == 64 * 16 * 4


def test_peak_bytes_counts_what_lives_at_once() -> None:
    x = torch.zeros(1000, 1000)

    def call(index: int) -> tuple[torch.Tensor, ...]:
        y = x.exp()
        z = y.neg()  # y and z live
        del y
        return (z.exp(),)  # z and the result live

    assert measure.peak_bytes(call, "cpu") == 2 * x.nbytes


def test_recorded_clock_replays_durations() -> None:
    clock = measure.RecordedClock()
    clock.load([0.25, 0.5])
    seen = []
    for _ in range(2):
        start = clock.now()
        clock.replay()
        seen.append(clock.now() - start)
    assert seen == [0.25, 0.5]


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def call(name: str) -> measure.Call:
        def run(index: int) -> tuple[torch.Tensor, ...]:
            order.append(name)
            return ()

        return run

    samples = measure.take_turns({"a": call("a"), "b": call("b")}, "cpu", budget=0.1)
    rounds = len(samples["a"])
    assert len(samples["b"]) == rounds >= 11
    assert order[-2 * rounds :] == ["a", "b"] * rounds
    slow = measure.take_turns({"a": call("a"), "b": call("b")}, "cpu", budget=0.0)
    assert len(slow["a"]) == len(slow["b"]) == 3
    assert order[2 * (rounds + 3) :] == ["a", "b"] * 3  # none of them to warm up


def test_disagreement_refuses_a_wrong_answer() -> None:
    group = Group("fused_tokenlearner", VIT, "fp32", "fwd")
    want = torch.ones(4)
    assert contestants.disagreement(group, (want + 1e-6,), (want,)) is None
    assert contestants.disagreement(group, (want + 0.5,), (want,)) == (
        "relative difference 5.00e-01 to eager PyTorch, expected at most 0.001"
    )
    assert contestants.disagreement(group, (want * float("nan"),), (want,)) is not None


@pytest.mark.parametrize("case", [VIT, WIDE, SINGLE, PHOTOS])
def test_case_reads_what_it_prints(case: Case) -> None:
    assert Case.parse(str(case)) == case


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("op", shapes.OPS)
def test_groups_are_unique_and_full_adds_to_quick(op: str, device: str) -> None:
    quick = [str(group) for group in shapes.groups(op, device, full=False) if not group.full]
    full = [str(group) for group in shapes.groups(op, device, full=True)]
    assert len(set(full)) == len(full)
    assert set(quick) < set(full)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_quick_rows_include_every_goal(device: str) -> None:
    groups = [group for op in shapes.OPS for group in shapes.groups(op, device, full=False)]
    held = {
        group.key for group in groups if not group.full and set(group.peers) >= set(shapes.peers_of(group.op))
    }
    for key, wanted in goals.TARGETS[device].items():
        aimed = {(*key, way) for way, goal in zip(shapes.DIRECTIONS, wanted, strict=True) if goal}
        assert held >= aimed


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_the_same_attention() -> None:
    for case in (
        *(replace(c, b=2) for c in (shapes.TO_IMAGE, shapes.PADDED)),
        replace(shapes.TO_MANY, n=100),
    ):
        group = Group(case.op, case, "fp32", "fwd")  # on a CPU it has no backward
        problem = contestants.problem_of(group, "cpu", 0)
        run = fusion.packed(case.op, case, fusion.peer(case.op, "flex"))
        expected = problem.call(problem.function("eager"))(0)
        assert contestants.disagreement(group, problem.call(run)(0), expected) is None
    assert all("flex" in group.peers for group in shapes.groups("fused_cross_attention", "cuda", full=True))


@pytest.mark.parametrize(
    ("choice", "kind"), [(SDPBackend.FLASH_ATTENTION, "flash"), (SDPBackend.MATH, "math")], ids=str
)
@pytest.mark.parametrize("op", shapes.FUSION_OPS)
def test_a_row_of_sdpa_names_the_kernel_that_ran(op: str, choice: SDPBackend, kind: str) -> None:
    case = FusionCase(op, 1, 16, 16, 2, 16, hidden=16 * (op in shapes.COMPOSED_OPS[1:]))
    group = Group(op, case, "fp32", "fwdbwd", ("eager", "sdpa"))
    session = conftest.Session("cpu", full=False, budget=0.0)
    with sdpa_kernel(choice):
        samples = session._measure(group)
    assert samples["sdpa"].kind == kind
    assert samples["eager"].kind == samples["cpu"].kind == ""


@pytest.mark.parametrize("op", shapes.FUSION_OPS)
def test_either_form_of_attention_is_compiled(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns, as when they are timed: neither gets the other's graph."""
    compile_, graphs = torch.compile, []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        def run(*given: torch.Tensor) -> Any:
            graphs.append({node.target for node in graph.graph.nodes})
            return graph(*given)

        return run

    def compiled(plain: Any, *, fullgraph: bool, dynamic: bool, mode: str) -> Any:
        return compile_(plain, fullgraph=fullgraph, dynamic=dynamic, backend=backend)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiled)
    case = FusionCase(op, 1, 16, 16, 2, 16, hidden=16 * (op in shapes.COMPOSED_OPS[1:]))
    group = next(g for g in shapes.groups(op, "cpu", full=False) if g.direction == "fwdbwd")
    problem = contestants.problem_of(replace(group, case=case, dtype="fp32"), "cpu", 0)
    calls = {name: problem.call(problem.function(name)) for name in group.peers if name in shapes.COMPILED}
    expected = problem.call(problem.function("eager"))(0)
    for name in (*calls, *calls):
        assert contestants.disagreement(problem.group, calls[name](0), expected) is None
        assert (F.scaled_dot_product_attention in graphs[-1]) == (name == "compile_sdpa")
    assert list(calls) == ["compile", "compile_sdpa"]


@pytest.mark.parametrize("backend", ["sdpa", "compile_sdpa", "cpu"])
def test_a_masked_row_has_a_name_and_a_mask_of_its_own(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda plain, **options: plain)
    assert str(shapes.PADDED) == f"{shapes.TO_IMAGE},masked"
    assert ("fused_cross_attention", str(shapes.PADDED), "bf16") not in goals.TARGETS["cpu"]
    for case, masked in ((shapes.TO_IMAGE, False), (shapes.PADDED, True)):
        small = replace(case, b=1, l=5, n=9, h=2)
        problem = contestants.problem_of(Group(case.op, small, "fp32", "fwdbwd"), "cpu", 0)
        assert ("mask" in problem.arguments(0)) == masked
        if backend == "cpu" and (reason := jair_kernels.why_not(case.op, backend)) is not None:
            pytest.skip(reason)
        y, *grads = problem.call(problem.function(backend))(0)
        expected = problem.call(problem.function("eager"))(0)
        assert contestants.disagreement(problem.group, (y, *grads), expected) is None
        rows_of_k = grads[1].abs().sum((0, 1, 3))
        assert bool((rows_of_k == 0).any()) == masked


def test_sweeps_reach_their_ends() -> None:
    cases = {group.case for group in shapes.groups("fused_tokenlearner", "cpu", full=True)}
    by_axis = {axis: [case for case in cases if axis in shapes.sweep_axis(case, "cpu")] for axis in "nk"}
    assert {case.n for case in by_axis["n"]} == {64, 196, 784, 3136, 12544, 50176}
    assert {case.k for case in by_axis["k"]} == {1, 2, 4, 8, 16, 32, 64, 128}


def test_quick_rows_show_where_the_methods_of_resampling_cross() -> None:
    quick = [g for g in shapes.groups("fused_latent_resample", "cpu", full=False) if not g.full]
    sizes = {(g.case.l, g.case.method) for g in quick if g.case.method and g.dtype == "fp32"}
    assert sizes == {(l, method) for l in (16, 128) for method in ("projected", "absorbed")}
    full = shapes.groups("fused_latent_resample", "cpu", full=True)
    assert {g.case.l for g in full if g.case.method} == {8, 16, 32, 64, 128}
    assert all(set(g.peers) == set(shapes.FUSION_PEERS) for g in full)
    timings = {n: rows.Timing(n, 1, 1, 1, 3, {"tokens": 8 * 196}) for n in ("cpu", "eager")}
    few = [rows.Result(*g.key, timings) for g in quick if g.case.method]
    assert not any(result.complete for result in few)
    assert len(report.sweep_table(few)) == 2 + 2 * 16


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_full_rows_have_the_attention_of_real_models(device: str) -> None:
    cases = {str(group.case) for group in shapes.groups("fused_cross_attention", device, full=True)}
    for sizes in ("8,64x320,d64", "16,64x321,d96", "12,32x257,d64", "12,128x185,d64"):
        assert any(case.split("x", 1)[1] == sizes for case in cases)


def test_photo_tokens_are_patches() -> None:
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn, which ships the photographs, is missing"
    )
    tokens = photo_tokens(3)
    photos = datasets.load_sample_images().images
    assert tokens.shape == (3, 196, 768)
    assert 0 <= float(tokens.min()) < float(tokens.max()) <= 1
    second_of_row_one = torch.from_numpy(photos[0][16:32, 16:32].copy()).reshape(-1) / 255
    assert torch.equal(tokens[0, 15], second_of_row_one)
    assert not torch.equal(tokens[0], tokens[2])  # another crop of the same photograph


def test_result_carries_no_host_name() -> None:
    config = SimpleNamespace(getoption=lambda name: "cpu")
    info: dict[str, Any] = {"node": "some-host", "release": "6.1", "cpu": {"brand_raw": "x"}}
    conftest.pytest_benchmark_update_machine_info(config, info)
    assert info == machine.describe("cpu")
    assert {"node", "release", "cpu"}.isdisjoint(info)
    assert platform.node() not in [str(value) for value in info.values()]
    commit: dict[str, Any] = {"id": "abc", "branch": "b", "project": "p", "time": "t", "dirty": True}
    conftest.pytest_benchmark_update_commit_info(config, commit)
    assert commit == {"id": "abc", "time": "t", "dirty": True}
