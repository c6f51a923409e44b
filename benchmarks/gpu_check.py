"""Build, test, sanitize and measure on a machine with a CUDA GPU: ``python -m benchmarks.gpu_check``.

Uses the machine's own Python, torch, triton and nvcc, and no network. Every step has a time limit and all
of them together end within eight minutes (``--seconds``); a step that fails does not stop the later ones.
Results and a log lie in benchmarks/results/<gpu>/, with ``--out DIR`` in DIR too. ``--only STEP`` runs that
step alone, say with the other tools of compute-sanitizer (``--tool``); its log has a name of its own.
``--prebuilt`` takes the library as it lies in the tree, once it is known to load with its CUDA kernels. The
summary, printed last, says of every step whether it is ok, failed or skipped, and why; the exit status is 1
unless every step is ok or was skipped for a tool that the machine lacks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.steps import GRACE_SECONDS, ROOT, TOTAL_SECONDS, Check, last_line, python

RESULTS = ROOT / "benchmarks" / "results"
NEW = RESULTS / "new" / "gpu.json"
REPORT = RESULTS / "new" / "gpu-tests.xml"
VERIFIED = ROOT / "jair_kernels" / "verified.json"
_LEFT_FOR_REPORT = 25
_ALL_TESTS_RUN = (0, 1)  # exit statuses of pytest: all have passed, some have failed

TRITON_OPS = (
    "fused_tokenlearner",
    "fused_token_pool",
    "fused_tokenfuser",
    "fused_cross_attention",
    "fused_latent_resample",
    "fused_gated_fusion",
    "fused_transformer_layer",
)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")  # of compute-sanitizer
GPU_KERNELS = (
    *((op, "triton") for op in TRITON_OPS),
    ("fused_token_pool", "cuda"),
    ("fused_tokenlearner", "cuda"),
)

_PROBE = """
import json, torch
from jair_kernels import __version__
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "version": __version__}
if torch.cuda.is_available():
    from benchmarks.machine import kind
    found |= {"kind": kind("cuda"), "gpu": torch.cuda.get_device_name()}
print(json.dumps(found))
"""
_LOADS = """
from jair_kernels import _library, available_backends, why_not
from jair_kernels._backends import operators
if _library.load_error or not _library.has_cuda_kernels():
    raise SystemExit(_library.load_error or "the library has no CUDA kernels")
for backend in ("triton", "cuda"):
    if backend not in available_backends():
        raise SystemExit(f"{backend}: {why_not(operators()[0], backend)}")
print("available:", ", ".join(available_backends()))
"""


def probe(check: Check) -> dict[str, str]:
    """Versions, and the GPU's name and kind, where there is one."""
    outcome = check.run("probe", python("-c", _PROBE), 120)
    if outcome.status != "ok":
        return {}
    found: dict[str, str] = json.loads(last_line(outcome.output))
    if "kind" not in found:
        outcome.status, outcome.reason = "failed", "no CUDA device is available"
        print(outcome)
    return found


def build(check: Check) -> None:
    """The library with its CUDA kernels, in place, with this machine's torch and nvcc."""
    command = python("setup.py", "-q", "build_ext", "--inplace")
    if check.run("build", command, 150, JAIR_KERNELS_CUDA="1").status == "ok":
        load(check)
    else:
        check.skip("load", "the build failed")


def load(check: Check) -> None:
    """The library as it lies in the tree."""
    check.run("load", python("-c", _LOADS), 60)


def tests(check: Check) -> None:
    """All ops on the device, in several processes where pytest-xdist is installed."""
    workers = str(min(12, os.cpu_count() or 1))
    # The compiled ones take longest and go first, each to another process.
    parallel = ["-n", workers, "--maxschedchunk=1"] if importlib.util.find_spec("xdist") else []
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.unlink(missing_ok=True)
    # A name and its outcome a line: the report of a run that is stopped is of a part of the tests, if any.
    command = python("-m", "pytest", "tests/gpu", "-v", "--tb=short", "-rf", "-p", "no:warnings")
    check.run("tests", [*command, f"--junitxml={REPORT}", *parallel], 180)


def find_sanitizer() -> str | None:
    """compute-sanitizer on the PATH or in the toolkit."""
    roots = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    places = [str(Path(root) / "bin") for root in roots if root]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )


def sanitize(check: Check, tools: Sequence[str] = TOOLS[:2]) -> None:
    """Wrong accesses, races on shared memory, reads of memory never written, misused barriers: each of
    these tools, over a few small calls.
    """
    program = find_sanitizer()

    def run(tool: str) -> None:
        if program is None:
            check.skip(tool, "compute-sanitizer is not installed", lacks_tool=True)
            return
        calls = python(str(ROOT / "tests" / "gpu" / "small_calls.py"))
        outcome = check.run(tool, [program, "--tool", tool, "--error-exitcode", "9", *calls], 150)
        if "Device not supported" in outcome.output:
            outcome.status, outcome.lacks_tool = "skipped", True
            outcome.reason = "compute-sanitizer does not support this machine"
            print(outcome)

    check.together(*(partial(run, tool) for tool in tools))


def benchmarks(check: Check) -> None:
    """pytest-benchmark's JSON; an interrupted run keeps the rows that were measured."""
    NEW.parent.mkdir(parents=True, exist_ok=True)
    NEW.unlink(missing_ok=True)
    command = python("-m", "pytest", "benchmarks", "--benchmark-only", "-q", "--device", "cuda")
    command.append(f"--benchmark-json={NEW}")
    check.run("benchmarks", command, check.left() - _LEFT_FOR_REPORT - GRACE_SECONDS)


def report(check: Check) -> None:
    """Table and plots beside the JSON."""
    if not NEW.exists() or NEW.stat().st_size == 0:
        check.skip("report", "the benchmarks wrote no results")
        return
    check.run("report", python("-m", "benchmarks.report", str(NEW), "--commit", "--no-cost"), 60)


def judged_by(report: Path) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """By pytest's report the kernels of which every test has passed and at least one has run, and those of
    which a test has failed.
    """
    good, bad = set(), set()
    for case in ElementTree.parse(report).iter("testcase"):
        words = case.get("name", "").replace("[", "-").replace("]", "-").split("-")
        outcomes = {child.tag for child in case}
        for op, backend in GPU_KERNELS:
            if (
                op.removeprefix("fused_") in (word.removeprefix("fused_") for word in words)
                and backend in words
            ):
                if outcomes & {"failure", "error"}:
                    bad.add((op, backend))
                elif "skipped" not in outcomes:
                    good.add((op, backend))
    return good - bad, bad


def record(check: Check, found: dict[str, str]) -> None:
    """For the table of ``python -m jair_kernels``: kernels whose tests have all passed enter it, those
    with a test that fails leave it. Tests that were stopped or did not start say nothing.
    """
    if check.exit_status("tests") not in _ALL_TESTS_RUN or check.status("load") != "ok":
        return
    passed, failed = judged_by(REPORT)
    here = {name: found[name] for name in ("gpu", "version")}
    kept = json.loads(VERIFIED.read_text(encoding="utf-8"))
    gone = [{"op": op, "backend": backend, **here} for op, backend in failed]
    kept = [entry for entry in kept if entry not in gone]
    for op, backend in sorted(passed):
        entry = {"op": op, "backend": backend, **here}
        if entry not in kept:
            kept.append(entry)
    VERIFIED.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


STEPS: tuple[Callable[[Check], None], ...] = (build, tests, sanitize, benchmarks, report)
SIDE_BY_SIDE = (tests, sanitize)


def write_log(check: Check, file: Path, summary: str) -> None:
    """The whole output of every step, without the paths of this machine."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(f"=== {o}\n{o.output}" for o in check.outcomes) + f"\n=== summary\n{summary}\n"
    for path, name in ((str(ROOT), "."), (sys.prefix, "<python>"), (str(Path.home()), "~")):
        text = text.replace(path, name)
    file.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run every step, write the log, print the summary."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, help="also copy the results to this folder")
    parser.add_argument(
        "--only",
        action="append",
        choices=[step.__name__ for step in STEPS],
        help="this step; repeatable (default: all)",
    )
    parser.add_argument(
        "--tool",
        action="append",
        choices=TOOLS,
        help="this tool of compute-sanitizer; repeatable (default: the first two)",
    )
    parser.add_argument("--prebuilt", action="store_true", help="take the library as it is, without a build")
    parser.add_argument(
        "--seconds", type=float, default=TOTAL_SECONDS, help="for all steps (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    check = Check(options.seconds)
    found = probe(check)
    chosen = [step for step in STEPS if not options.only or step.__name__ in options.only]
    if "kind" not in found:
        for step in chosen:
            check.skip(step.__name__, "no CUDA device was found")
        chosen = []
    special = {build: load} if options.prebuilt else {}
    special |= {sanitize: partial(sanitize, tools=options.tool)} if options.tool else {}
    while chosen:
        first = chosen.pop(0)
        steps = [first]
        if first in SIDE_BY_SIDE:
            steps += [step for step in chosen if step in SIDE_BY_SIDE]
        chosen = [step for step in chosen if step not in steps]
        check.together(*(partial(special.get(step, step), check) for step in steps))
    folder = RESULTS / found.get("kind", "new")
    passed = all(o.status == "ok" or o.lacks_tool for o in check.outcomes)
    if "kind" in found:
        record(check, found)
    lines = [f"GPU check on {found.get('gpu', 'no GPU')}, torch {found.get('torch', 'unknown')}"]
    lines += [str(outcome) for outcome in check.outcomes]
    lines.append(f"{'passed' if passed else 'NOT PASSED'} in {time.monotonic() - check.start:.0f} s")
    summary = "\n".join(lines)
    name = "-".join(["gpu-check", *(options.only or [])])
    write_log(check, folder / f"{name}.log", summary)
    if options.out:
        shutil.copytree(folder, options.out, dirs_exist_ok=True)
    print(f"\n{summary}\nwritten to {folder.relative_to(ROOT)}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
