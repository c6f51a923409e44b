"""The training runs of an experiment: each is ``jair train`` and one JSON file, kept when it is finished."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from jair import JAIRConfig, cost
from jair._files import write_text
from jair.runs import read_run, smoothed

COMMAND = (sys.executable, "-c", "from jair.cli import main; main()")
ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A part of a run: the sources it learns from, for how many steps."""

    sources: tuple[str, ...]
    steps: int


@dataclass(frozen=True)
class Plan:
    """Settings of a run but for its model's and its seed; a finished run is kept only under the same plan.

    Each stage starts from the model of the one before, and only the last brings the learning rate down.
    """

    stages: tuple[Stage, ...]
    val: tuple[str, ...]
    batch_size: int
    lr: float
    sampler: str
    tokenizer: str
    base: dict[str, Any]  # fields of JAIRConfig, on top of the preset "tiny"
    options: tuple[str, ...]  # further ones of jair train
    test_examples: int = 0  # of each split that is scored after the training

    def settings(self) -> Result:
        """As plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Run:
    """A run to do: its name, the file that keeps its result, the plan it has to be of, and what does it."""

    name: str
    path: Path
    plan: Plan
    do: Callable[[], Result]


class RunFailed(RuntimeError):
    """A command of a run failed; the message is its last line."""


def call(arguments: Sequence[str], threads: int) -> str:
    """The standard output of a command of jair.

    Raises:
        RunFailed: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(_path())}
    result = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise RunFailed(f"jair {arguments[0]}: {lines[-1]} (exit status {result.returncode})")
    return result.stdout


def _path() -> list[str]:
    given = os.environ.get("PYTHONPATH")
    return [str(ROOT), *([given] if given else [])]


def missing(runs: Sequence[Run]) -> list[Run]:
    """Those that are not finished.

    Raises:
        ValueError: one was finished under another plan.
    """
    return [run for run in runs if not _finished(run)]


def _finished(run: Run) -> bool:
    if not run.path.exists():
        return False
    kept, wanted = json.loads(run.path.read_text())["settings"], run.plan.settings()
    for key, value in wanted.items():
        if kept.get(key) != value:
            raise ValueError(f"{run.path}: expected a run with {key} {value}, got one with {kept.get(key)}")
    return True


def do_all(
    runs: Sequence[Run], at_once: int, told: Callable[[Result], str], after: Callable[[], None]
) -> int:
    """Do them, `at_once` at a time, keep what comes out, and tell of it on stderr; how many failed."""
    failed = 0
    with ThreadPoolExecutor(at_once) as pool:
        jobs = {pool.submit(do, run): run for run in runs}
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                name = jobs[job].name
                try:
                    result = job.result()
                except RunFailed as error:
                    failed += 1
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                print(f"{done}/{len(runs)} {name}: {told(result)}", file=sys.stderr)
                after()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def do(run: Run) -> Result:
    """Do one and keep its result.

    Raises:
        RunFailed: it failed.
    """
    result = run.do()
    write_text(run.path, json.dumps(result, indent=1) + "\n")
    return result


def train(seed: int, changes: dict[str, Any], plan: Plan, work: Path, threads: int) -> Result:
    """Train in the folder `work`, going on where an earlier attempt was stopped.

    Stages before the last have folders beside it.

    Raises:
        RunFailed: the training failed.
    """
    start = time.monotonic()
    begin = ["--preset", "tiny", "--tokenizer", plan.tokenizer]
    for key, value in {**plan.base, **changes}.items():
        begin += ["--set", f"{key}={json.dumps(value)}"]
    curve, steps, broken = [], 0, False
    for number, stage in enumerate(plan.stages, start=1):
        last = number == len(plan.stages)
        folder = work if last else work.with_name(f"{work.name}-stage{number}")
        words = ["train", str(folder), *begin, *_words(seed, stage, plan)]
        words += ["--schedule", "cosine" if last else "constant"]
        broken = broken or folder.exists()
        words += ["--resume"] if folder.exists() else []
        checkpoint = Path(call(words, threads).strip().splitlines()[-1])
        begin = ["--init", str(checkpoint)]
        run = read_run(folder)
        curve += [(r["step"] + steps, r["loss"]) for r in run.steps if r["loss"] is not None]
        steps += stage.steps
    config = JAIRConfig.from_dict(json.loads((checkpoint / "config.json").read_text()))
    return {
        "seed": seed,
        "gmac": cost.macs(config).total / 1e9,
        "parameters": cost.parameters(config),
        "settings": plan.settings(),
        "changes": changes,
        "config": config.to_dict(),
        "curve": _curve(curve),
        "probabilities": {
            name: _curve(run.of_source("probabilities", name)) for name in run.sources("probabilities")
        },
        "validations": run.validations,
        "train_seconds": None if broken else time.monotonic() - start,
        **provenance(),
    }


def _words(seed: int, stage: Stage, plan: Plan) -> list[str]:
    """Of jair train, the same for every model."""
    words = ["--seed", str(seed)]
    for option, texts in (("--source", stage.sources), ("--val", plan.val)):
        for text in texts:
            words += [option, text]
    words += ["--steps", str(stage.steps), "--batch-size", str(plan.batch_size), "--lr", str(plan.lr)]
    return [*words, "--sampler", plan.sampler, *plan.options]


def _curve(pairs: Sequence[tuple[int, float]]) -> dict[str, list[float]]:
    steps, values = smoothed(pairs)
    return {"step": steps, "value": values}


def seconds(result: Result) -> str:
    """How long a run took, after what else is told of it; nothing of one that was interrupted."""
    taken = result["train_seconds"]
    return "" if taken is None else f", {taken:.0f} s"


def score(work: Path, split: str, plan: Plan, threads: int, device: str | None) -> Result:
    """What `jair eval` finds of a run on the first validation source's data, in another split."""
    words = ["eval", str(work), "--source", plan.val[0], "--split", split]
    words += ["--limit", str(plan.test_examples), *(["--device", device] if device else [])]
    scores: Result = json.loads(call(words, threads).strip().splitlines()[-1])
    return scores


def provenance() -> Result:
    """The commit, the versions and the machine."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    for package in ("transformers", "jair-kernels"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from the sources
            versions[package] = "not installed"
    return {
        "commit": (commit.stdout.strip() or "unknown") + ("-changed" if changed.stdout.strip() else ""),
        "versions": versions,
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores",
    }
