"""Accuracy against operations, all fusions trained alike: ``python -m experiments.accuracy --out FOLDER``.

Every run is one file in FOLDER/runs; what is finished is skipped, so the table can be stopped and started at
will, also on another machine. The page and the plot are written anew after each run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from experiments import accuracy_table
from experiments.runs import Plan, RunFailed, call, finished, save, train_and_score
from experiments.variants import BASE, Variant, choose
from jair._files import write_text


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; 1 if a run failed."""
    options = _parser().parse_args(arguments)
    try:
        variants, plan = choose(options.only), _plan(options)
        todo = missing(options.out, variants, options.seeds, plan)
    except ValueError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    print(f"{len(variants) * len(options.seeds)} runs, {len(todo)} to do", file=sys.stderr)
    failed = 0
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    guesses = options.out / accuracy_table.GUESSES
    if not guesses.exists():
        write_text(guesses, call(["data", "baselines", "--source", plan.val, "--split", "test"], threads))
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = {pool.submit(_run, options.out, *run, plan, threads, options.device): run for run in todo}
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                variant, seed = jobs[job]
                try:
                    result = job.result()
                except RunFailed as error:
                    failed += 1
                    print(f"{variant.name}, seed {seed}: {error}", file=sys.stderr)
                    continue
                accuracy = 100 * result["accuracy"]
                told = f"{variant.name}, seed {seed}: {accuracy:.1f} %, {result['seconds']:.0f} s"
                print(f"{done}/{len(todo)} {told}", file=sys.stderr)
                accuracy_table.write(options.out)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not todo:
        accuracy_table.write(options.out)
    return 1 if failed else 0


def missing(folder: Path, variants: list[Variant], seeds: list[int], plan: Plan) -> list[tuple[Variant, int]]:
    """The runs that are not finished, all variants of the first seed first.

    Raises:
        ValueError: a finished run had other settings.
    """
    runs = [(variant, seed) for seed in seeds for variant in variants]
    return [run for run in runs if not finished(_file(folder, *run), plan)]


def _run(
    folder: Path, variant: Variant, seed: int, plan: Plan, threads: int, device: str | None
) -> dict[str, Any]:
    path = _file(folder, variant, seed)
    work = folder / "work" / path.stem
    result = train_and_score(variant.name, seed, variant.changes, plan, work, threads, device)
    save(result, path)
    return result


def _file(folder: Path, variant: Variant, seed: int) -> Path:
    return folder / "runs" / f"{variant.name.replace(', ', '-').replace(' ', '-')}-seed{seed}.json"


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        sources=tuple(options.source or ["scenes"]),
        val=options.val,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        sampler=options.sampler,
        tokenizer=options.tokenizer,
        base={**BASE, **dict(_field(change) for change in options.changes)},
        options=tuple(options.train_option),
        test_examples=options.test_examples,
    )


def _field(change: str) -> tuple[str, Any]:
    key, equals, value = change.partition("=")
    if not equals:
        raise ValueError(f"--set: expected key=value, got {change!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.accuracy", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("experiments/results/accuracy"))
    add("--only", action="append", default=[], metavar="NAME", help="this variant; repeatable")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=3000)
    add("--batch-size", type=int, default=64)
    add("--lr", type=float, default=1e-3)
    add("--sampler", default="uniform")
    add("--tokenizer", default="data", help="bytes, data or a folder")
    add("--source", action="append", default=[], help="as in jair train; repeatable; default: scenes")
    add("--val", default="scenes", help="what is scored, on the splits test and compositional")
    add("--test-examples", type=int, default=2000)
    add("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE", help="of JAIRConfig")
    add("--train-option", action="append", default=[], help="further words for jair train; repeatable")
    add("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    add("--threads", type=int, help="of each run; default: cores / jobs")
    add("--device", help="of the evaluation, as in jair eval")
    return parser


if __name__ == "__main__":
    sys.exit(main())
