"""The benchmark suite's own arithmetic: counts, verdicts, report, comparison. Nothing is timed here."""

from __future__ import annotations

import json
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
    compare,
    conftest,
    contestants,
    fusion,
    goals,
    machine,
    measure,
    readme,
    report,
    rows,
    shapes,
)
from benchmarks.fusion import FusionCase
from benchmarks.inputs import photo_tokens
from benchmarks.model import ModelCase
from benchmarks.shapes import PHOTOS, SINGLE, VIT, WIDE, Case, Group
from jair_kernels.tokenlearner import cost as learner_cost


def _row(
    case: Case, dtype: str, direction: str, backend: str, median: float, op: str = "fused_tokenlearner"
) -> dict[str, Any]:
    info = {"op": op, "case": str(case), "dtype": dtype, "direction": direction, "backend": backend}
    counts = contestants.counts(Group(op, case, dtype, direction))
    memory = {"saved_bytes": 418_816, "peak_bytes": 2_000_000, "fraction_of_ceiling": 0.25}
    stats = {"q1": 0.99 * median, "median": median, "q3": 1.01 * median, "rounds": 100}
    return {"extra_info": info | counts | memory | {"tokens": case.b * case.n}, "stats": stats}


def _group(case: Case, dtype: str, direction: str, **medians: float) -> list[dict[str, Any]]:
    return [_row(case, dtype, direction, backend, median) for backend, median in medians.items()]


def _document(*groups: list[dict[str, Any]]) -> dict[str, Any]:
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
        if backend == "cpu" and jair_kernels.why_not(case.op, backend):
            pytest.skip("the library is not built")
        y, *grads = problem.call(problem.function(backend))(0)
        expected = problem.call(problem.function("eager"))(0)
        assert contestants.disagreement(problem.group, (y, *grads), expected) is None
        rows_of_k = grads[1].abs().sum((0, 1, 3))
        assert bool((rows_of_k == 0).any()) == masked


def test_rows_of_sdpa_are_one_peer_whatever_ran() -> None:
    old = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, sdpa=2e-3)))
    new = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, sdpa_flash=1e-3)))
    line = f"fused_tokenlearner {VIT} bf16 fwd cpu: 2.00x -> 1.00x (-50 %)"
    assert compare.compare(old, new).faults == [line]
    assert new.results[0].fastest_peer().backend == "sdpa_flash"
    assert "sdpa_flash 1 ms" in report.speed_table(new.results)[-1]


@pytest.mark.parametrize(
    ("device", "tuned", "mode"),
    [("cpu", True, "default"), ("cuda", False, "default"), ("cuda", True, "max-autotune-no-cudagraphs")],
)
def test_a_report_names_the_mode_of_torch_compile(device: str, tuned: bool, mode: str) -> None:
    document = _document(_group(VIT, "bf16", "fwd", cpu=1e-3, eager=5e-3, compile=4e-3))
    assert not [line for line in report.notes(rows.parse(document)) if "torch.compile" in line]
    given = contestants.compile_mode(Group("fused_tokenlearner", VIT, "bf16", "fwd"), device, tuned)
    document["benchmarks"][-1]["extra_info"]["compile_mode"] = given
    run = rows.parse(document)
    for text in (report.render(run, []), readme.section(run)):
        assert f"torch.compile ran in mode {mode}." in text
    assert (
        contestants.compile_mode(Group("JAIR", ModelCase(64), "bf16", "fwdbwd"), device, tuned) == "default"
    )


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


def test_the_summary_is_read_from_where_the_json_lies(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert conftest._file_of(str(path)) == conftest._file_of(path) == path
    with path.open("wb") as file:
        assert conftest._file_of(file) == path


def test_speedup_is_over_the_fastest_peer() -> None:
    run = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=1e-3, eager=5e-3, compile=4e-3)))
    (result,) = run.results
    assert result.fastest_peer().backend == "compile"
    assert result.speedup(result.ours[0]) == pytest.approx(4.0)
    assert result.verdict(result.ours[0]) == "faster"
    assert result.target() == 4.2


@pytest.mark.parametrize(
    ("ours", "verdict"), [(0.97e-3, "faster"), (0.99e-3, "tie"), (1.01e-3, "tie"), (1.2e-3, "slower")]
)
def test_overlapping_samples_are_a_tie(ours: float, verdict: str) -> None:
    run = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=ours, eager=1e-3, compile=2e-3)))
    assert run.results[0].verdict(run.results[0].ours[0]) == verdict


def test_the_host_has_a_column_where_it_was_measured() -> None:
    counts = {"flops": 1, "bytes": 1, "fraction_of_ceiling": 0.5, "saved_bytes": 0, "peak_bytes": 0}
    for host, told in ((None, []), (2e-4, ["host: ours / peers"])):
        more = {} if host is None else {"host_seconds": host}
        timings = {name: rows.Timing(name, 1, 1, 1, 3, counts | more) for name in ("triton", "eager")}
        head, _, line = report.cost_table([rows.Result("fused_tokenlearner", "c", "bf16", "fwd", timings)])
        assert [cell.strip() for cell in head.split("|")[1:-1]][10:] == told
        assert ("200 us / 200 us" in line) == bool(told)


def test_summary_leaves_out_rows_without_all_peers() -> None:
    document = _document(
        _group(VIT, "bf16", "fwd", cpu=1e-3, eager=5e-3, compile=4e-3),
        _group(WIDE, "bf16", "fwd", cpu=1e-3, eager=5e-3),
    )
    (line,) = rows.summary(rows.parse(document))
    assert line.split() == [
        *("fused_tokenlearner", str(VIT), "bf16", "fwd", "cpu", "1", "ms"),
        *("4.00x", "faster", "over", "compile", "4", "ms", "target", "4.2x"),
    ]


def _write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "run.json"
    path.write_text(json.dumps(document))
    return path


def test_report_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the plots, is missing")
    from benchmarks import report

    document = _document(
        _group(VIT, "bf16", "fwd", cpu=1e-3, eager=5e-3, compile=4.3e-3),
        _group(VIT, "fp32", "fwdbwd", cpu=5e-3, eager=5e-3, compile=6e-3),
        _group(WIDE, "fp32", "fwd", cpu=9e-3, eager=6e-3, compile=7e-3),
        _group(shapes.k_sweep_case(1, "cpu"), "bf16", "fwd", cpu=1e-3, eager=3.136e-3),
        _group(shapes.n_sweep_case(64, "cpu"), "bf16", "fwd", cpu=1e-3, eager=2e-3),
    )
    source = _write(tmp_path, document)
    report.main([str(source), "--commit", "--no-cost", "--results", str(tmp_path)])
    folder = tmp_path / "cpu-avx512"
    text = (folder / "README.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| {VIT} | bf16 | fwd | cpu | 1 ms | compile 4.3 ms | **4.30x** | 4.2x, met |" in text
    assert f"| {VIT} | fp32 | fwdbwd | cpu | 5 ms | eager 5 ms | 1.00x (tie) | 1.9x, missed |" in text
    assert f"| {WIDE} | fp32 | fwd | cpu | 9 ms | eager 6 ms | 0.67x (slower) | 3x, missed |" in text
    memory = "419 kB / 419 kB / 419 kB | 2 MB / 2 MB / 2 MB"
    assert f"| {VIT} | fp32 | fwdbwd | cpu | 1.05 G | 30.7 MB | 34.2 | 25 % | {memory} |" in text
    assert "| 16x196x768,h64,k1 | bf16 | fwd | eager | 3.14 ms | 1 M |" in text
    assert "A processor (avx512), 2 threads. jair_kernels 0.1.0, torch 2.13.0, python 3.12.1." in text
    assert "Commit 0123456789ab, 2026-01-02." in text
    assert "The goals are those of a CPU with AMX tiles, which this one has not." in text
    assert json.loads((folder / "benchmarks.json").read_text()) == document
    for plot in ("speedups.svg", "tokens_per_second.svg", "roofline.svg"):
        assert f"]({plot})" in text
        first = (folder / plot).read_bytes()
        report.main([str(source), "--commit", "--no-cost", "--results", str(tmp_path)])
        assert (folder / plot).read_bytes() == first


def test_report_refuses_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "absent.json")])
    assert "absent.json: no such file; run make bench first" in capsys.readouterr().err


def test_report_before_the_first_run_has_the_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the report draws plots")
    from benchmarks import report

    monkeypatch.setattr(report, "NEW", tmp_path / "benchmarks.json")
    monkeypatch.setattr(report, "write_costs", lambda folder: f"costs in {folder.name}")
    report.main([])
    assert capsys.readouterr().out.splitlines()[-1] == "costs in cost"
    with pytest.raises(SystemExit):
        report.main(["--no-cost"])


@pytest.mark.parametrize(("ours", "faults"), [(1.0e-3, 0), (1.15e-3, 0), (1.25e-3, 1), (0.5e-3, 0)])
def test_compare_fails_over_fifteen_per_cent(ours: float, faults: int) -> None:
    old = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=5e-3)))
    new = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=ours, eager=4e-3, compile=5e-3)))
    outcome = compare.compare(old, new)
    assert len(outcome.lines) == 1
    assert len(outcome.faults) == faults


def test_compare_looks_at_ratios_not_at_times() -> None:
    old = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=5e-3)))
    new = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=3e-3, eager=12e-3, compile=15e-3)))
    outcome = compare.compare(old, new)
    assert outcome.lines == [f"fused_tokenlearner {VIT} bf16 fwd cpu: 4.00x -> 4.00x (+0 %)"]
    assert outcome.faults == []


def test_compare_notices_a_row_of_ours_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = tmp_path / "cpu-avx512" / "benchmarks.json"
    committed.parent.mkdir()
    document = _document(_group(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=5e-3))
    committed.write_text(json.dumps(document))
    source = _write(tmp_path, _document(_group(VIT, "bf16", "fwd", eager=4e-3, compile=5e-3)))
    assert compare.main([str(source), "--results", str(tmp_path)]) == 1
    message = f"REGRESSED fused_tokenlearner {VIT} bf16 fwd cpu: not measured\n"
    assert message in capsys.readouterr().out
    assert compare.main([str(_write(tmp_path, document)), "--results", str(tmp_path)]) == 0


def test_compare_takes_the_peers_that_both_runs_have() -> None:
    """The same speed, but for ours over eager PyTorch in the second row, which has no other peer."""
    sweep = shapes.n_sweep_case(64, "cpu")
    old = rows.parse(
        _document(
            _group(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=2e-3),
            _group(sweep, "bf16", "fwd", cpu=1e-3, eager=4e-3),
        )
    )
    new = rows.parse(
        _document(
            _group(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3),
            _group(sweep, "bf16", "fwd", cpu=2e-3, eager=4e-3, compile=3e-3),
        )
    )
    outcome = compare.compare(old, new)
    lost = f"fused_tokenlearner {sweep} bf16 fwd cpu: 4.00x -> 2.00x (-50 %)"
    assert outcome.lines == [f"fused_tokenlearner {VIT} bf16 fwd cpu: 4.00x -> 4.00x (+0 %)", lost]
    assert outcome.faults == [lost]
    alone = rows.parse(_document(_group(VIT, "bf16", "fwd", cpu=1e-3)))
    (fault, _) = compare.compare(old, alone).faults
    assert fault == f"fused_tokenlearner {VIT} bf16 fwd cpu: no peer was measured in both runs"


def test_compare_misses_rows_and_ops() -> None:
    """But not those of --full, until the new run has one of them."""
    quick, other = (_group(case, "bf16", "fwd", cpu=1e-3, eager=4e-3) for case in (VIT, WIDE))
    late = [_group(case, "fp32", "fwd", cpu=1e-3, eager=4e-3) for case in (SINGLE, VIT)]
    late[1] = [_row(VIT, "fp16", "fwd", backend, 1e-3) for backend in ("cpu", "eager")]
    fuser = [_row(VIT, "bf16", "fwd", backend, 1e-3, "fused_tokenfuser") for backend in ("cpu", "eager")]
    old = rows.parse(_document(quick, other, fuser, *late))
    gone = [f"fused_tokenlearner {WIDE} bf16 fwd", f"fused_tokenfuser {VIT} bf16 fwd"]
    faults = compare.compare(old, rows.parse(_document(quick))).faults
    assert faults == [f"{name} cpu: not measured" for name in gone]
    gone.insert(1, f"fused_tokenlearner {VIT} fp16 fwd")
    faults = compare.compare(old, rows.parse(_document(quick, late[0]))).faults
    assert faults == [f"{name} cpu: not measured" for name in gone]


def test_compare_without_a_committed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _write(tmp_path, _document(_group(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=5e-3)))
    assert compare.main([str(source), "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to compare with: no committed run of a cpu-avx512\n"


@pytest.mark.parametrize("kind", [path.parent.name for path in rows.RESULTS.glob("*/benchmarks.json")])
def test_every_json_of_a_machine_is_a_run(kind: str) -> None:
    for path in (rows.RESULTS / kind).glob("*.json"):
        run = rows.load(path)
        assert kind in (run.machine["kind"], "new")
        assert run.results


def test_the_readme_shows_the_committed_numbers(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(readme.README.read_text())
    readme.update(copy)
    assert copy.read_text() == readme.README.read_text()
