"""One training run of an experiment: ``jair train``, then its scores, kept as one JSON file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Plan:
    """What all runs of an experiment have in common; a finished run is kept only under the same plan."""

    sources: tuple[str, ...]
    val: str
    steps: int
    batch_size: int
    lr: float
    sampler: str
    tokenizer: str
    base: dict[str, Any]  # fields of JAIRConfig, on top of the preset "tiny"
    options: tuple[str, ...]  # further ones of jair train
    test_examples: int

    def settings(self) -> dict[str, Any]:
        """As plain JSON."""
        return json.loads(json.dumps(self.__dict__))  # type: ignore[no-any-return]


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


def finished(path: Path, plan: Plan) -> bool:
    """Whether the run is done.

    Raises:
        ValueError: it was done under another plan.
    """
    if not path.exists():
        return False
    kept, wanted = json.loads(path.read_text())["settings"], plan.settings()
    for key, value in wanted.items():
        if kept.get(key) != value:
            raise ValueError(f"{path}: expected a run with {key} {value}, got one with {kept.get(key)}")
    return True


def train_and_score(
    name: str, seed: int, changes: dict[str, Any], plan: Plan, work: Path, threads: int, device: str | None
) -> dict[str, Any]:
    """Train in the folder `work`, going on where an earlier attempt was stopped, and score the result.

    Raises:
        RunFailed: training or evaluation failed.
    """
    start = time.monotonic()
    arguments = ["train", str(work), "--preset", "tiny", "--val", plan.val, "--seed", str(seed)]
    for source in plan.sources:
        arguments += ["--source", source]
    arguments += ["--steps", str(plan.steps), "--batch-size", str(plan.batch_size), "--lr", str(plan.lr)]
    arguments += ["--sampler", plan.sampler, "--tokenizer", plan.tokenizer, *plan.options]
    for key, value in {**plan.base, **changes}.items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    if work.exists():
        arguments.append("--resume")
    call(arguments, threads)
    trained = time.monotonic()
    scores = {split: _score(work, split, plan, threads, device) for split in ("test", "compositional")}
    checkpoint = Path(scores["test"]["checkpoint"])
    config = JAIRConfig.from_dict(json.loads((checkpoint / "config.json").read_text()))
    run = read_run(work)
    steps, losses = smoothed([(r["step"], r["loss"]) for r in run.steps])
    return {
        "variant": name,
        "seed": seed,
        "accuracy": scores["test"]["accuracy"],
        "compositional": scores["compositional"]["accuracy"],
        "groups": scores["test"]["groups"],
        "gmac": cost.macs(config).total / 1e9,
        "gmac_short_text": cost.macs(config, text_length=min(32, config.max_text_length)).total / 1e9,
        "parameters": cost.parameters(config),
        "settings": plan.settings(),
        "changes": changes,
        "config": config.to_dict(),
        "curve": {"step": steps, "loss": losses},
        "validations": run.validations,
        "train_seconds": trained - start,
        "seconds": time.monotonic() - start,
        **provenance(),
    }


def _score(work: Path, split: str, plan: Plan, threads: int, device: str | None) -> dict[str, Any]:
    arguments = [
        "eval",
        str(work),
        "--source",
        plan.val,
        "--split",
        split,
        "--limit",
        str(plan.test_examples),
    ]
    printed = call([*arguments, *(["--device", device] if device else [])], threads)
    scores: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return scores


def provenance() -> dict[str, Any]:
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


def save(result: dict[str, Any], path: Path) -> None:
    """Write the file of a finished run, whole or not at all."""
    write_text(path, json.dumps(result, indent=1) + "\n")
