"""The command line that the experiments share, and their way through what is missing."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.runs import Result, Run, do_all, missing


def parser(
    name: str, description: str | None, *, steps: int, batch_size: int, lr: float
) -> argparse.ArgumentParser:
    """With the options of every experiment; results go to experiments/results/NAME."""
    made = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
    add = made.add_argument
    add("--out", type=Path, default=Path(f"experiments/results/{name}"))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=steps)
    add("--batch-size", type=int, default=batch_size)
    add("--lr", type=float, default=lr)
    add("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE", help="of JAIRConfig")
    add("--train-option", action="append", default=[], help="further words for jair train; repeatable")
    add("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    add("--threads", type=int, help="of each run; default: cores / jobs")
    return made


def model(options: argparse.Namespace, base: dict[str, Any]) -> dict[str, Any]:
    """Fields of JAIRConfig: those of `base`, changed by --set.

    Raises:
        ValueError: a --set without "=".
    """
    return {**base, **dict(_field(change) for change in options.changes)}


def _field(change: str) -> tuple[str, Any]:
    """KEY=VALUE, the value in JSON or as it stands."""
    key, equals, value = change.partition("=")
    if not equals:
        raise ValueError(f"--set: expected key=value, got {change!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def threads(options: argparse.Namespace) -> int:
    """Of each run."""
    return int(options.threads or max(1, (os.cpu_count() or 1) // options.jobs))


def go(
    name: str,
    options: argparse.Namespace,
    runs: Callable[[argparse.Namespace], Sequence[Run]],
    *,
    before: Callable[[], None],
    told: Callable[[Result], str],
    write: Callable[[], None],
) -> int:
    """Do the runs that are missing, after `before`, and `write` the page after each; with none to do,
    write it all the same. 1 if a run failed, or if the runs do not fit the options or what is finished.
    """
    try:
        wanted = runs(options)
        todo = missing(wanted)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print(f"{len(wanted)} runs, {len(todo)} to do", file=sys.stderr)
    if not todo:
        write()
        return 0
    before()
    return 1 if do_all(todo, options.jobs, told, write) else 0
