"""What adaptive sampling of the sources buys: ``python -m experiments.sampling --out FOLDER``.

One model is trained on one mixture under each rule of `jair.AdaptiveSampler`, with several seeds. As in the
accuracy table, what is finished is skipped, so the experiment can be stopped and started at will.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from experiments import mixture, sampling_report
from experiments.options import go, model, parser, threads
from experiments.runs import Plan, Result, Run, Stage, seconds, train
from experiments.variants import BASE

SMALLER = {"num_layers": 2}  # so that a dozen runs fit into an hour
RULES = {
    "difficulty": "adaptive (difficulty)",
    "uniform": "uniform",
    "temperature": "size-proportional",
    "odm": "ODM",
}


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; 1 if a run failed."""
    options = _parser().parse_args(arguments)
    draw, write = partial(mixture.write, options.data), partial(sampling_report.write, options.out)
    return go("sampling", options, _runs, before=draw, told=_told, write=write)


def _runs(options: argparse.Namespace) -> list[Run]:
    """All, with every rule of the first seed first."""
    plans = [_plan(options, rule) for rule in RULES]
    return [_run(options.out, seed, plan, threads(options)) for seed in options.seeds for plan in plans]


def _run(folder: Path, seed: int, plan: Plan, cores: int) -> Run:
    rule = plan.sampler
    path = folder / "runs" / f"{rule}-seed{seed}.json"

    def do() -> Result:
        trained = train(seed, {}, plan, folder / "work" / path.stem, cores)
        return {"rule": rule, "name": RULES[rule], **trained}

    return Run(f"{RULES[rule]}, seed {seed}", path, plan, do)


def _told(result: Result) -> str:
    last = result["validations"][-1]
    told = f"validation loss {last['val_loss']:.3f}, accuracy {100 * last['val_accuracy']:.1f} %"
    return f"{told}{seconds(result)}"


def _plan(options: argparse.Namespace, rule: str) -> Plan:
    sources = tuple(mixture.sources(options.data).values())
    every, examples = str(options.val_every), str(options.val_examples)
    return Plan(
        stages=(Stage(sources, options.steps),),
        val=sources,
        batch_size=options.batch_size,
        lr=options.lr,
        sampler=rule,
        tokenizer="data",
        base=model(options, {**BASE, **SMALLER}),
        options=("--val-every", every, "--val-examples", examples, *options.train_option),
    )


def _parser() -> argparse.ArgumentParser:
    made = parser("sampling", __doc__, steps=400, batch_size=64, lr=1e-3)
    add = made.add_argument
    add("--data", type=Path, default=Path("build/mixture"), help="folder in which the mixture is drawn")
    add("--val-every", type=int, default=50)
    add("--val-examples", type=int, default=300, help="of each source")
    return made


if __name__ == "__main__":
    sys.exit(main())
