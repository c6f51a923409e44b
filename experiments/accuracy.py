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
from experiments.runs import Plan, Result, Run, Stage, call, score, seconds, train
from experiments.variants import BASE, Variant, choose
from jair._files import write_text

# What is learned in which order: the share of all steps, and the weights of the kinds in it. Lists of objects
# teach what words look like, queries how to find what they name; "is there", counting and the rest build on
# that. With about equal weights from the start, a model was at 47 % after 48,000 examples.
LESSONS: tuple[tuple[float, dict[str, float]], ...] = (
    (0.4, {"query": 50, "objects": 20, "verify": 6, "count": 6, "compare": 6, "logical": 6, "relate": 6}),
    (0.35, {"query": 20, "objects": 6, "verify": 40, "count": 20, "compare": 2, "logical": 6, "relate": 6}),
    (0.25, {"query": 10, "objects": 5, "verify": 20, "count": 20, "compare": 5, "logical": 25, "relate": 15}),
)
STEPS = 7000
OPTIONS = ("--freeze", "image_encoder.backbone", "--val-every", "1000")


def lessons(steps: int) -> tuple[Stage, ...]:
    """Those of `LESSONS` in so many steps, at least one each."""
    return tuple(
        Stage(
            tuple(f"scenes,task={kind},weight={weight}" for kind, weight in weights.items()),
            max(1, round(share * steps)),
        )
        for share, weights in LESSONS
    )


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
    variants = choose(options.only)
    return [
        _run(options.out, variant, seed, _plan(options, variant), threads(options), options.device)
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
    return f"{100 * result['accuracy']:.1f} %{seconds(result)}"


def _plan(options: argparse.Namespace, variant: Variant) -> Plan:
    steps = round(options.steps * variant.length)
    given = (Stage(tuple(options.source), steps),)
    return Plan(
        stages=given if options.source else lessons(steps),
        val=(options.val,),
        batch_size=options.batch_size,
        lr=options.lr,
        sampler="temperature",  # by the weights of the sources
        tokenizer=options.tokenizer,
        base=model(options, BASE),
        options=(*OPTIONS, *options.train_option),
        test_examples=options.test_examples,
    )


def _parser() -> argparse.ArgumentParser:
    made = parser("accuracy", __doc__, steps=STEPS, batch_size=16, lr=4e-4)
    add = made.add_argument
    add("--only", action="append", default=[], metavar="NAME", help="this variant; repeatable")
    add("--tokenizer", default="data", help="bytes, data or a folder")
    add("--source", action="append", default=[], help="as in jair train, instead of the lessons; repeatable")
    add("--val", default="scenes", help="what is scored, on the splits test and compositional")
    add("--test-examples", type=int, default=2000)
    add("--device", help="of the evaluation, as in jair eval")
    return made


if __name__ == "__main__":
    sys.exit(main())
