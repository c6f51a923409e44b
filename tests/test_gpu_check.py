"""The GPU check's own machinery, as far as it goes without a GPU: steps, time limits, an honest summary."""

from __future__ import annotations

import json
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed jair_kernels goes before the source tree

from benchmarks import gpu_check, steps


def code(text: str) -> list[str]:
    return gpu_check.python("-c", text)


@pytest.fixture
def check() -> steps.Check:
    return steps.Check()


def test_a_step_that_works(check: steps.Check) -> None:
    outcome = check.run("build", code("print('made')"), 60)
    assert (outcome.status, outcome.reason, outcome.output) == ("ok", "", "made\n")
    assert check.status("build") == "ok"


def test_a_failure_tells_the_exit_status_and_the_last_line(check: steps.Check) -> None:
    outcome = check.run("tests", code("print('1 failed\\n'); raise SystemExit(3)"), 60)
    assert (outcome.status, outcome.reason) == ("failed", "exit status 3: 1 failed")


def test_a_program_that_is_not_there(check: steps.Check) -> None:
    outcome = check.run("memcheck", ["no-such-program"], 60)
    assert (outcome.status, outcome.reason) == (
        "failed",
        "no-such-program does not start: No such file or directory",
    )


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["", "in-background"])
def test_a_step_over_its_time_is_interrupted_and_keeps_its_output(check: steps.Check, handler: Any) -> None:
    """As pytest does, the step writes what it has at the interrupt; background jobs of a shell ignore it."""
    wait = "try:\n print('begun', flush=True)\n time.sleep(60)\nfinally: print('written', flush=True)"
    sleeper = f"import time\n{wait}"
    before = signal.signal(signal.SIGINT, handler)
    try:
        outcome = check.run("benchmarks", code(sleeper), 5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (outcome.status, outcome.reason) == ("failed", "stopped after 5 s")
    assert "begun" in outcome.output
    assert "written" in outcome.output


def test_no_step_begins_without_time(check: steps.Check) -> None:
    check.start -= steps.TOTAL_SECONDS
    check.run("report", code("print('late')"), 60)
    assert str(check.outcomes[0]).split() == ["report", "skipped", "0", "s", "no", "time", "is", "left"]


def test_without_a_sanitizer_its_steps_are_skipped(
    check: steps.Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: None)
    gpu_check.sanitize(check)
    assert sorted((o.name, o.status, o.reason, o.lacks_tool) for o in check.outcomes) == [
        ("memcheck", "skipped", "compute-sanitizer is not installed", True),
        ("racecheck", "skipped", "compute-sanitizer is not installed", True),
    ]


def test_a_machine_without_a_gpu_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: make gpu-check tells more")
    monkeypatch.setattr(gpu_check, "RESULTS", gpu_check.ROOT / "build" / "gpu-check")
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "NOT PASSED" in printed
    assert "no CUDA device is available" in printed
    log = (tmp_path / "gpu-check.log").read_text(encoding="utf-8")
    for step in gpu_check.STEPS:
        assert f"{step.__name__:10} skipped" in log
    assert str(gpu_check.ROOT) not in log


def test_the_library_is_asked_by_names_that_exist(check: steps.Check) -> None:
    """Without a GPU it is not there, and says so itself."""
    outcome = check.run("load", code(gpu_check._LOADS), 120)
    if outcome.status != "ok":
        assert "Error" not in outcome.reason


def test_every_kernel_that_is_tested_on_a_gpu_is_called_verified() -> None:
    path = gpu_check.ROOT / "tests" / "gpu" / "test_device.py"
    tested = runpy.run_path(str(path))["KERNELS"]
    assert sorted(gpu_check.GPU_KERNELS) == sorted(tested)


def test_all_tools_of_the_sanitizer_can_be_asked_for(
    check: steps.Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: "true")
    gpu_check.sanitize(check, gpu_check.TOOLS)
    assert {o.name: o.status for o in check.outcomes} == dict.fromkeys(gpu_check.TOOLS, "ok")


def _record(check: steps.Check, folder: Path, monkeypatch: pytest.MonkeyPatch, cases: str) -> list[str]:
    """What is called verified after two records of pytest's report; before, the pool's kernel in CUDA is."""
    verified, report = folder / "verified.json", folder / "report.xml"
    entry = {"op": "fused_token_pool", "backend": "cuda", "gpu": "a GPU"}
    verified.write_text(json.dumps([entry | {"version": version} for version in "01"]), encoding="utf-8")
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>", encoding="utf-8")
    monkeypatch.setattr(gpu_check, "VERIFIED", verified)
    monkeypatch.setattr(gpu_check, "REPORT", report)
    check.add(steps.Outcome("load", "ok", 1.0))
    for _ in range(2):
        gpu_check.record(check, {"gpu": "a GPU", "version": "1"})
    kept = json.loads(verified.read_text(encoding="utf-8"))
    return [f"{entry['op']} {entry['backend']} {entry['version']}" for entry in kept]


_BEFORE = ["fused_token_pool cuda 0", "fused_token_pool cuda 1"]
_ONE_PASSES = '<testcase name="test_accuracy[fused_token_pool-B2-N7-D48-K1-triton-float32]"/>'


def test_kernels_are_called_verified_while_their_tests_pass(
    check: steps.Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure, and the kernel no longer is; a kernel whose tests were all skipped is not either."""
    cases = (
        f"{_ONE_PASSES}"
        '<testcase name="test_cuda_graph[token_pool-triton]"/>'
        '<testcase name="test_cuda_graph[token_pool-cuda]"><failure/></testcase>'
        '<testcase name="test_side_stream[token_pool-cuda]"/>'
        '<testcase name="test_side_stream[tokenfuser-triton]"><skipped/></testcase>'
    )
    check.run("tests", code("raise SystemExit(1)"), 60)
    kept = _record(check, tmp_path, monkeypatch, cases)
    assert kept == ["fused_token_pool cuda 0", "fused_token_pool triton 1"]


@pytest.mark.parametrize(
    ("program", "kept"),
    [
        ("", [*_BEFORE, "fused_token_pool triton 1"]),
        ("import time; time.sleep(60)", _BEFORE),  # stopped by its time limit
        ("raise SystemExit(2)", _BEFORE),  # pytest, interrupted
        (None, _BEFORE),  # not asked for: the report is that of another run
    ],
    ids=["passed", "stopped", "interrupted", "left-out"],
)
def test_tests_that_did_not_all_run_verify_nothing(
    check: steps.Check,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str | None,
    kept: list[str],
) -> None:
    if program is not None:
        check.run("tests", code(program), 5)
    assert _record(check, tmp_path, monkeypatch, _ONE_PASSES) == kept
