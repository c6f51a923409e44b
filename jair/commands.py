"""jair cost, jair describe, jair generate."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jair import commands_eval, cost_report, cost_tables
from jair import cost as costs
from jair._files import check_file
from jair._saved import read_empty
from jair.config import JAIRConfig
from jair.data import commands as data
from jair.data.images import read_image
from jair.data.tokenizers import load_tokenizer
from jair.encoders import optional_import, with_settings
from jair.model import JAIR
from jair.training import commands as training
from jair.training.checkpoint import resolve

app = typer.Typer(
    help="The JAIR model: what it costs, its training, its answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("eval")(commands_eval.evaluate)
app.command()(commands_eval.report)
app.command()(training.train)
app.add_typer(data.app, name="data")
err = Console(stderr=True)

Preset = Annotated[str, typer.Option(help="tiny, base or large.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="A field of JAIRConfig, as key=value.")]
TextLength = Annotated[int | None, typer.Option(help="Words of text; default: max_text_length.")]


def parse_changes(changes: list[str] | None) -> dict[str, Any]:
    """--set key=value, values in JSON or as words."""
    values: dict[str, Any] = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set: expected key=value, got {change!r}")
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value  # a word
    return values


def _config(preset: str, changes: list[str] | None) -> JAIRConfig:
    return JAIRConfig.preset(preset, **parse_changes(changes))


@app.command()
def cost(
    preset: Preset = "base",
    changes: Changes = None,
    text_length: TextLength = None,
    memory: Annotated[bool, typer.Option(help="Also the memory of a training step (takes minutes).")] = True,
    out: Annotated[
        Path | None, typer.Option(help="A folder for README.md, cost.json and plots, besides printing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of Markdown.")] = False,
) -> None:
    """What the model and its variants cost, beside the paper's figures: exact counts, not measurements."""

    def progress(steps: Iterable[Any], total: int) -> Iterable[Any]:
        return track(steps, "memory", total=total, console=err, transient=True)

    _config(preset, changes)  # its errors before the work
    if out is not None:
        check_file("--out", out / "cost.json")
        optional_import("matplotlib", "train")
    found = cost_tables.count(
        preset,
        parse_changes(changes),
        text_length=text_length,
        memory_of=tuple(cost_tables.TABLES) if memory else (),
        progress=progress,
    )
    text = cost_report.render(found) if out is None else cost_report.write(found, out)
    typer.echo(json.dumps([row.to_dict() for row in found], indent=2) if as_json else text, nl=as_json)


@app.command()
def describe(
    checkpoint: Annotated[Path | None, typer.Argument(help="A saved model; default: the preset.")] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, base or large; default: base.")] = None,
    changes: Changes = None,
) -> None:
    """Configuration, parameters and operations, part by part."""
    if checkpoint is None:
        config = with_settings(_config(preset or "base", changes))  # else weights would be read
        with torch.device("meta"):
            model = JAIR(config)
    elif preset is not None or changes:
        raise ValueError("CHECKPOINT: expected no --preset and no --set beside a saved model")
    else:
        model = read_empty(resolve(checkpoint), JAIR)
    macs = costs.macs(model.config)
    table = Table("part", "parameters (M)", "GMAC")
    for name, part in model.named_children():
        count = sum(parameter.numel() for parameter in part.parameters()) / 1e6
        gmac = getattr(macs, name, None)
        table.add_row(name, f"{count:.2f}", "" if gmac is None else f"{gmac / 1e9:.2f}")
    total = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    table.add_row("all", f"{total:.2f}", f"{macs.total / 1e9:.2f}")
    typer.echo(json.dumps(model.config.to_dict(), indent=2))
    Console().print(table)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A saved model, a run, or tiny, which comes with jair.")],
    image: Annotated[Path, typer.Option(help="A photograph, in any format that Pillow reads.")],
    prompt: Annotated[str, typer.Option(help="What is asked.")],
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most words of the answer; default: 16, or what fits.")
    ] = None,
    num_beams: Annotated[int, typer.Option(help="Beams of a beam search; 1 = greedy.")] = 1,
) -> None:
    """Answer a question about a photograph with a saved model."""
    checkpoint = resolve(checkpoint)
    with err.status("loading"):
        model = JAIR.from_pretrained(checkpoint, dtype=torch.float32).for_inference()
        tokenizer = load_tokenizer(checkpoint)
    with err.status("answering"):
        answer = commands_eval.ask(model, tokenizer, read_image(image), prompt, max_new_tokens, num_beams)
    typer.echo(answer)
