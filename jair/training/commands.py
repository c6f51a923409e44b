"""jair train."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from jair._saved import read_config
from jair.config import JAIRConfig
from jair.data.sources import Source, SourceSpec, open_source
from jair.data.tokenizers import (
    bytes_tokenizer,
    load_tokenizer,
    read_tokenizer,
    train_tokenizer,
    word_count,
)
from jair.encoders import text_settings, with_settings
from jair.training import checkpoint
from jair.training.parallel import Workers
from jair.training.plan import LISTS, TrainPlan, check_fields, read_settings
from jair.training.signals import Stopped

TOKENIZER_EXAMPLES = 5_000  # of each source, from which the tokenizer "data" is made


def train(
    out: Annotated[Path, typer.Argument(help="Folder for checkpoints and logs.")],
    config: Annotated[
        Path | None, typer.Option(help="JSON with settings; options here go before it.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, base or large; default: tiny.")] = None,
    init: Annotated[
        str | None, typer.Option(help="A saved model to start from: its weights, sizes and tokenizer.")
    ] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(help="A module that is not trained, as image_encoder; repeatable.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="KIND:PATH[,task=...][,weight=...]; repeatable.")
    ] = None,
    val: Annotated[
        list[str] | None, typer.Option(help="KIND:PATH, whose split val is measured; repeatable.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of a step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps until it is reached.")] = None,
    schedule: Annotated[str | None, typer.Option(help="After that: cosine or constant.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and sampling.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Rule of AdaptiveSampler.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts in which a batch is computed.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of averaged weights; 0 = none.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bytes, data, init (the saved model's) or a folder; default: init, a T5's own, bytes."
        ),
    ] = None,
    bf16: Annotated[bool | None, typer.Option(help="bfloat16 autocast.")] = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile.")] = None,
    augment: Annotated[bool | None, typer.Option(help="Random crops and flips.")] = None,
    strategy: Annotated[str | None, typer.Option(help="ddp or fsdp, of several processes.")] = None,
    strict: Annotated[bool | None, typer.Option(help="Fail on an example that cannot be read.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps.")] = None,
    keep: Annotated[int | None, typer.Option(help="Checkpoints that are kept.")] = None,
    val_every: Annotated[int | None, typer.Option(help="Steps.")] = None,
    val_examples: Annotated[int | None, typer.Option(help="Examples of a validation.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest whole checkpoint.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A field of JAIRConfig, as key=value.")
    ] = None,
) -> None:
    """Train a model; SIGINT or SIGTERM saves and stops it, --resume goes on bit for bit.

    Several processes: torchrun --nproc-per-node N -m jair train ...
    """
    given = {name: value for name, value in locals().items() if value is not None}
    settings = read_settings(config) if config is not None else {name: [] for name in LISTS}
    settings |= {name: given[name] for name in _FIELDS if name in given}
    for name, chosen in (("sources", source), ("val", val), ("freeze", freeze)):
        if chosen:
            settings[name] = chosen
    workers = Workers.join()
    try:
        if not resume and workers.first and out.exists() and any(out.iterdir()):
            raise ValueError(f"{out}: expected an empty or new folder, or --resume, got one with files")
        found = checkpoint.to_resume(out) if resume else None
        workers.wait()  # or the first would already write
        _run(out, settings, preset, changes, found, workers)
    finally:
        workers.leave()


_FIELDS = tuple(field.name for field in dataclasses.fields(TrainPlan) if field.name not in ("model", *LISTS))


def _run(
    out: Path,
    settings: dict[str, Any],
    preset: str | None,
    changes: list[str] | None,
    found: Path | None,
    workers: Workers,
) -> None:
    from jair.commands import parse_changes
    from jair.training.loop import Trainer

    check_fields(settings)  # before anything is opened with them
    console = Console(stderr=True, quiet=not workers.first)
    of_model = {**settings.pop("model", {}), **parse_changes(changes)}
    preset = preset or settings.pop("preset", "tiny")
    settings.pop("preset", None)
    shares = {"seed": settings.get("seed", 0), "strict": settings.get("strict", False)}
    shares |= {"rank": workers.rank, "world_size": workers.count}
    start = found
    if settings.get("init"):
        start = found or checkpoint.resolve(Path(settings["init"]))
        of_model = {**read_config(start).to_dict(), **of_model}
        settings.setdefault("tokenizer", "init")
    of_model, own = _like_text_encoder(preset, of_model)
    settings.setdefault("tokenizer", own)
    image_size = JAIRConfig.preset(preset, **of_model).image_size
    sources, val = (SourceSpec.parse_all(settings[name]) for name in ("sources", "val"))
    opened = [open_source(spec, "train", **shares, image_size=image_size) for spec in sources]
    held = [open_source(spec, "val", strict=shares["strict"], image_size=image_size) for spec in val]
    chosen = settings["tokenizer"]
    words = _tokenizer(chosen, opened, start, found is not None)
    model = _model(preset, of_model, chosen, words)
    plan = TrainPlan.from_dict({**settings, "model": model.to_dict()})
    console.print_json(json.dumps(plan.to_dict()))
    fresh = start if found is None else None
    trainer = Trainer(plan, out, opened, held, words, workers, console, fresh)
    if found is not None:
        trainer.resume(found)
        console.print(f"going on from {found.name}")
    stopped = None
    try:
        saved = trainer.train()
    except Stopped as error:
        stopped = error
    if workers.first:  # what several say alike, as of a file that each reads whole, is told once
        for line in dict.fromkeys(line for lines in trainer.skipped for line in lines):
            typer.echo(line, err=True)
    if stopped is not None:
        console.print(str(stopped))
        raise typer.Exit(stopped.code)
    if workers.first:
        typer.echo(saved)


def _like_text_encoder(preset: str, of_model: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Fields of the model with the sizes that a T5 as its text encoder has, and the tokenizer that goes with
    it: that beside the T5's weights, else "bytes".
    """
    named = {name: of_model[name] for name in ("text_encoder", "text_encoder_config") if name in of_model}
    config = JAIRConfig.preset(preset, **named)
    t5 = text_settings(with_settings(config))
    if t5 is None:
        return of_model, "bytes"
    own = config.text_encoder if config.text_encoder_config is None else "bytes"
    return {"vocab_size": t5.vocab_size, "dim": t5.d_model, **of_model}, own


def _model(preset: str, of_model: dict[str, Any], chosen: str, words: Any) -> JAIRConfig:
    """The model for the tokenizer `chosen`, `words`.

    Raises:
        TypeError, ValueError: a field does not fit, or the tokenizer has more words than the model.
    """
    count = word_count(words)
    special = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    model = JAIRConfig.preset(preset, **{"vocab_size": count, **special, **of_model})
    # Bytes are not saved: of another size nobody could tell what the model's tokenizer is.
    alone = chosen == "bytes"
    if model.vocab_size < count or (alone and model.vocab_size != count):
        wanted = f"{count}" if alone else f"at least {count}"
        raise ValueError(
            f"vocab_size: expected {wanted} with the tokenizer {chosen!r}, got {model.vocab_size}"
        )
    return model


def _tokenizer(chosen: str, sources: list[Source], start: Path | None, resumed: bool) -> Any:
    """The one `chosen`; `start` is the checkpoint that is resumed, or the saved model to start from."""
    if chosen == "bytes":
        return bytes_tokenizer()
    if chosen == "init":
        if start is None:
            raise ValueError("tokenizer: expected 'init' with --init only")
        return load_tokenizer(start)
    if chosen == "data" and not resumed:
        texts = (
            text
            for source in sources
            for example in islice(source.evaluation(TOKENIZER_EXAMPLES), TOKENIZER_EXAMPLES)
            for text in (example.prompt, example.answer)
        )
        return train_tokenizer(texts)
    return read_tokenizer(start if chosen == "data" and start is not None else chosen)
