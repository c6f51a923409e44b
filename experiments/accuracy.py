"""Accuracy against operations, all fusions trained alike: ``python -m experiments.accuracy --out FOLDER``.

Every run is one file in FOLDER/runs; what is finished is skipped, so the table can be stopped and started at
will, also on another machine. The page and the plot are written anew after each run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from experiments import accuracy_table
from experiments.runs import Plan, Result, Run, call, do_all, missing, score, train
from experiments.variants import BASE, Variant, choose
from jair._files import write_text

# Lists of objects teach what words look like, and queries, the plainest questions, how to find what they
# name; the other kinds are learned once that is. With all kinds alike and lists of objects, a model was still
# near guessing after 80,000 examples.
SOURCES = ("scenes,weight=0.45", "scenes,task=query,weight=0.35", "scenes,task=objects,weight=0.2")


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; 1 if a run failed."""
    options = _parser().parse_args(arguments)
    try:
        variants, plan = choose(options.only), _plan(options)
        threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
        runs = [
            _run(options.out, variant, seed, plan, threads, options.device)
            for seed in options.seeds
            for variant in variants
        ]
        todo = missing(runs)
    except ValueError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    print(f"{len(runs)} runs, {len(todo)} to do", file=sys.stderr)
    guesses = options.out / accuracy_table.GUESSES
    if not guesses.exists():
        write_text(guesses, call(["data", "baselines", "--source", plan.val[0], "--split", "test"], threads))
    failed = do_all(todo, options.jobs, _told, lambda: accuracy_table.write(options.out))
    if not todo:
        accuracy_table.write(options.out)
    return 1 if failed else 0


def _run(folder: Path, variant: Variant, seed: int, plan: Plan, threads: int, device: str | None) -> Run:
    """A row of the table with one seed."""
    path = folder / "runs" / f"{variant.name.replace(', ', '-').replace(' ', '-')}-seed{seed}.json"

    def do() -> Result:
        work = folder / "work" / path.stem
        trained = train(seed, variant.changes, plan, work, threads)
        scores = {split: score(work, split, plan, threads, device) for split in ("test", "compositional")}
        return {
            "variant": variant.name,
            "accuracy": scores["test"]["accuracy"],
            "compositional": scores["compositional"]["accuracy"],
            "groups": scores["test"]["groups"],
            **trained,
        }

    return Run(f"{variant.name}, seed {seed}", path, plan, do)


def _told(result: Result) -> str:
    return f"{100 * result['accuracy']:.1f} %, {result['train_seconds']:.0f} s"


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        sources=tuple(options.source or SOURCES),
        val=(options.val,),
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        sampler=options.sampler,
        tokenizer=options.tokenizer,
        base={**BASE, **dict(field(change) for change in options.changes)},
        options=tuple(options.train_option),
        test_examples=options.test_examples,
    )


def field(change: str) -> tuple[str, Any]:
    """KEY=VALUE of --set, the value in JSON or as it stands.

    Raises:
        ValueError: there is no "=".
    """
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
    add("--sampler", default="temperature", help="of jair train; default: by the weights of the sources")
    add("--tokenizer", default="data", help="bytes, data or a folder")
    add(
        "--source",
        action="append",
        default=[],
        help=f"as in jair train; repeatable; default: {' '.join(SOURCES)}",
    )
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
