"""Accuracy against operations, all fusions trained alike: ``python -m experiments.accuracy --out FOLDER``.

Every run is one file in FOLDER/runs; what is finished is skipped, so the table can be stopped and started at
will, also on another machine. The page and the plot are written anew after each run.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from experiments import accuracy_table
from experiments.options import go, model, parser, threads
from experiments.runs import Plan, Result, Run, call, score, train
from experiments.variants import BASE, Variant, choose
from jair._files import write_text

# Lists of objects teach what words look like, and queries, the plainest questions, how to find what they
# name; the other kinds are learned once that is. With all kinds alike and lists of objects, a model was still
# near guessing after 80,000 examples.
SOURCES = ("scenes,weight=0.45", "scenes,task=query,weight=0.35", "scenes,task=objects,weight=0.2")


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; 1 if a run failed."""
    options = _parser().parse_args(arguments)

    def guess() -> None:
        file = options.out / accuracy_table.GUESSES
        if not file.exists():
            words = ["data", "baselines", "--source", options.val, "--split", "test"]
            write_text(file, call(words, threads(options)))

    write = partial(accuracy_table.write, options.out)
    return go("accuracy", options, _runs, before=guess, told=_told, write=write)


def _runs(options: argparse.Namespace) -> list[Run]:
    """All, with every variant of the first seed first."""
    variants, plan = choose(options.only), _plan(options)
    return [
        _run(options.out, variant, seed, plan, threads(options), options.device)
        for seed in options.seeds
        for variant in variants
    ]


def _run(folder: Path, variant: Variant, seed: int, plan: Plan, cores: int, device: str | None) -> Run:
    """A row of the table with one seed."""
    path = folder / "runs" / f"{variant.name.replace(', ', '-').replace(' ', '-')}-seed{seed}.json"

    def do() -> Result:
        work = folder / "work" / path.stem
        trained = train(seed, variant.changes, plan, work, cores)
        scores = {split: score(work, split, plan, cores, device) for split in ("test", "compositional")}
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
        base=model(options, BASE),
        options=tuple(options.train_option),
        test_examples=options.test_examples,
    )


def _parser() -> argparse.ArgumentParser:
    made = parser("accuracy", __doc__, steps=3000)
    add = made.add_argument
    add("--only", action="append", default=[], metavar="NAME", help="this variant; repeatable")
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
    add("--device", help="of the evaluation, as in jair eval")
    return made


if __name__ == "__main__":
    sys.exit(main())
