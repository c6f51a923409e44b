"""What reads the results of benchmarks: speed-ups, verdicts, reports, comparison. Nothing is timed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed jair_kernels goes before the source tree

from benchmark_rows import group_of, make_document, row

from benchmarks import (
    compare,
    conftest,
    contestants,
    readme,
    report,
    rows,
    shapes,
)
from benchmarks.model import ModelCase
from benchmarks.shapes import SINGLE, VIT, WIDE, Group


def test_rows_of_sdpa_are_one_peer_whatever_ran() -> None:
    old = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, sdpa=2e-3)))
    new = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, sdpa_flash=1e-3)))
    line = f"fused_tokenlearner {VIT} bf16 fwd cpu: 2.00x -> 1.00x (-50 %)"
    assert compare.compare(old, new).faults == [line]
    assert new.results[0].fastest_peer().backend == "sdpa_flash"
    assert "sdpa_flash 1 ms" in report.speed_table(new.results)[-1]


@pytest.mark.parametrize(
    ("device", "tuned", "mode"),
    [("cpu", True, "default"), ("cuda", False, "default"), ("cuda", True, "max-autotune-no-cudagraphs")],
)
def test_a_report_names_the_mode_of_torch_compile(device: str, tuned: bool, mode: str) -> None:
    document = make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=5e-3, compile=4e-3))
    assert not [line for line in report.notes(rows.parse(document)) if "torch.compile" in line]
    given = contestants.compile_mode(Group("fused_tokenlearner", VIT, "bf16", "fwd"), device, tuned)
    document["benchmarks"][-1]["extra_info"]["compile_mode"] = given
    run = rows.parse(document)
    for text in (report.render(run, []), readme.section(run)):
        assert f"torch.compile ran in mode {mode}." in text
    assert (
        contestants.compile_mode(Group("JAIR", ModelCase(64), "bf16", "fwdbwd"), device, tuned) == "default"
    )


def test_the_summary_is_read_from_where_the_json_lies(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert conftest._file_of(str(path)) == conftest._file_of(path) == path
    with path.open("wb") as file:
        assert conftest._file_of(file) == path


def test_speedup_is_over_the_fastest_peer() -> None:
    run = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=5e-3, compile=4e-3)))
    (result,) = run.results
    assert result.fastest_peer().backend == "compile"
    assert result.speedup(result.ours[0]) == pytest.approx(4.0)
    assert result.verdict(result.ours[0]) == "faster"
    assert result.target() == 4.2


@pytest.mark.parametrize(
    ("ours", "verdict"), [(0.97e-3, "faster"), (0.99e-3, "tie"), (1.01e-3, "tie"), (1.2e-3, "slower")]
)
def test_overlapping_samples_are_a_tie(ours: float, verdict: str) -> None:
    run = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=ours, eager=1e-3, compile=2e-3)))
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
    document = make_document(
        group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=5e-3, compile=4e-3),
        group_of(WIDE, "bf16", "fwd", cpu=1e-3, eager=5e-3),
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

    document = make_document(
        group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=5e-3, compile=4.3e-3),
        group_of(VIT, "fp32", "fwdbwd", cpu=5e-3, eager=5e-3, compile=6e-3),
        group_of(WIDE, "fp32", "fwd", cpu=9e-3, eager=6e-3, compile=7e-3),
        group_of(shapes.k_sweep_case(1, "cpu"), "bf16", "fwd", cpu=1e-3, eager=3.136e-3),
        group_of(shapes.n_sweep_case(64, "cpu"), "bf16", "fwd", cpu=1e-3, eager=2e-3),
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
    old = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=5e-3)))
    new = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=ours, eager=4e-3, compile=5e-3)))
    outcome = compare.compare(old, new)
    assert len(outcome.lines) == 1
    assert len(outcome.faults) == faults


def test_compare_looks_at_ratios_not_at_times() -> None:
    old = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=5e-3)))
    new = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=3e-3, eager=12e-3, compile=15e-3)))
    outcome = compare.compare(old, new)
    assert outcome.lines == [f"fused_tokenlearner {VIT} bf16 fwd cpu: 4.00x -> 4.00x (+0 %)"]
    assert outcome.faults == []


def test_compare_notices_a_row_of_ours_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = tmp_path / "cpu-avx512" / "benchmarks.json"
    committed.parent.mkdir()
    document = make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=5e-3))
    committed.write_text(json.dumps(document))
    source = _write(tmp_path, make_document(group_of(VIT, "bf16", "fwd", eager=4e-3, compile=5e-3)))
    assert compare.main([str(source), "--results", str(tmp_path)]) == 1
    message = f"REGRESSED fused_tokenlearner {VIT} bf16 fwd cpu: not measured\n"
    assert message in capsys.readouterr().out
    assert compare.main([str(_write(tmp_path, document)), "--results", str(tmp_path)]) == 0


def test_compare_takes_the_peers_that_both_runs_have() -> None:
    """The same speed, but for ours over eager PyTorch in the second row, which has no other peer."""
    sweep = shapes.n_sweep_case(64, "cpu")
    old = rows.parse(
        make_document(
            group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=2e-3),
            group_of(sweep, "bf16", "fwd", cpu=1e-3, eager=4e-3),
        )
    )
    new = rows.parse(
        make_document(
            group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3),
            group_of(sweep, "bf16", "fwd", cpu=2e-3, eager=4e-3, compile=3e-3),
        )
    )
    outcome = compare.compare(old, new)
    lost = f"fused_tokenlearner {sweep} bf16 fwd cpu: 4.00x -> 2.00x (-50 %)"
    assert outcome.lines == [f"fused_tokenlearner {VIT} bf16 fwd cpu: 4.00x -> 4.00x (+0 %)", lost]
    assert outcome.faults == [lost]
    alone = rows.parse(make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3)))
    (fault, _) = compare.compare(old, alone).faults
    assert fault == f"fused_tokenlearner {VIT} bf16 fwd cpu: no peer was measured in both runs"


def test_compare_misses_rows_and_ops() -> None:
    """But not those of --full, until the new run has one of them."""
    quick, other = (group_of(case, "bf16", "fwd", cpu=1e-3, eager=4e-3) for case in (VIT, WIDE))
    late = [group_of(case, "fp32", "fwd", cpu=1e-3, eager=4e-3) for case in (SINGLE, VIT)]
    late[1] = [row(VIT, "fp16", "fwd", backend, 1e-3) for backend in ("cpu", "eager")]
    fuser = [row(VIT, "bf16", "fwd", backend, 1e-3, "fused_tokenfuser") for backend in ("cpu", "eager")]
    old = rows.parse(make_document(quick, other, fuser, *late))
    gone = [f"fused_tokenlearner {WIDE} bf16 fwd", f"fused_tokenfuser {VIT} bf16 fwd"]
    faults = compare.compare(old, rows.parse(make_document(quick))).faults
    assert faults == [f"{name} cpu: not measured" for name in gone]
    gone.insert(1, f"fused_tokenlearner {VIT} fp16 fwd")
    faults = compare.compare(old, rows.parse(make_document(quick, late[0]))).faults
    assert faults == [f"{name} cpu: not measured" for name in gone]


def test_compare_without_a_committed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _write(tmp_path, make_document(group_of(VIT, "bf16", "fwd", cpu=1e-3, eager=4e-3, compile=5e-3)))
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
