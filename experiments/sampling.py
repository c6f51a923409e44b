"""What adaptive sampling of the sources buys: ``python -m experiments.sampling --out FOLDER``.

One model is trained on one mixture under each rule of `jair.AdaptiveSampler`, with several seeds. As in the
accuracy table, what is finished is skipped, so the experiment can be stopped and started at will.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from experiments import mixture, sampling_report
from experiments.accuracy import field
from experiments.runs import Plan, Result, Run, do_all, missing, train
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
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    try:
        plans = {rule: _plan(options, rule) for rule in RULES}
        runs = [_run(options.out, seed, plan, threads) for seed in options.seeds for plan in plans.values()]
        todo = missing(runs)
    except ValueError as error:
        print(f"sampling: {error}", file=sys.stderr)
        return 1
    print(f"{len(runs)} runs, {len(todo)} to do", file=sys.stderr)
    if todo:
        mixture.write(options.data)
    failed = do_all(todo, options.jobs, _told, lambda: sampling_report.write(options.out))
    if not todo:
        sampling_report.write(options.out)
    return 1 if failed else 0


def _run(folder: Path, seed: int, plan: Plan, threads: int) -> Run:
    rule = plan.sampler
    path = folder / "runs" / f"{rule}-seed{seed}.json"

    def do() -> Result:
        trained = train(seed, {}, plan, folder / "work" / path.stem, threads)
        return {"rule": rule, "name": RULES[rule], **trained}

    return Run(f"{RULES[rule]}, seed {seed}", path, plan, do)


def _told(result: Result) -> str:
    last = result["validations"][-1]
    told = f"validation loss {last['val_loss']:.3f}, accuracy {100 * last['val_accuracy']:.1f} %"
    return f"{told}, {result['train_seconds']:.0f} s"


def _plan(options: argparse.Namespace, rule: str) -> Plan:
    sources = tuple(mixture.sources(options.data).values())
    every, examples = str(options.val_every), str(options.val_examples)
    return Plan(
        sources=sources,
        val=sources,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        sampler=rule,
        tokenizer="data",
        base={**BASE, **SMALLER, **dict(field(change) for change in options.changes)},
        options=("--val-every", every, "--val-examples", examples, *options.train_option),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.sampling", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("experiments/results/sampling"))
    add("--data", type=Path, default=Path("build/mixture"), help="folder in which the mixture is drawn")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=400)
    add("--batch-size", type=int, default=64)
    add("--lr", type=float, default=1e-3)
    add("--val-every", type=int, default=50)
    add("--val-examples", type=int, default=300, help="of each source")
    add("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE", help="of JAIRConfig")
    add("--train-option", action="append", default=[], help="further words for jair train; repeatable")
    add("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores")
    add("--threads", type=int, help="of each run; default: cores / jobs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
