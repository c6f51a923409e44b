"""jair cost, jair describe, jair generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jair import commands_eval
from jair import cost as costs
from jair.config import JAIRConfig
from jair.encoders import optional_import
from jair.model import JAIR

app = typer.Typer(
    help="The JAIR model and what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("eval")(commands_eval.evaluate)
app.command()(commands_eval.report)
err = Console(stderr=True)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what ResNets are trained with

NOTE = """\
One multiply-accumulate is one FLOP in the paper's tables. Plain cross-attention is the cheapest; how much
cheaper ours is than concatenation depends on the image size and on how the text is padded."""

Preset = Annotated[str, typer.Option(help="tiny, base or large.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="A field of JAIRConfig, as key=value.")]
TextLength = Annotated[int | None, typer.Option(help="Words of text; default: max_text_length.")]


def _config(preset: str, changes: list[str] | None, **more: Any) -> JAIRConfig:
    values: dict[str, Any] = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set: expected key=value, got {change!r}")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value  # a word
    return JAIRConfig.preset(preset, **{**values, **more})


@app.command()
def cost(
    preset: Preset = "base",
    changes: Changes = None,
    text_length: TextLength = None,
    saved: Annotated[bool, typer.Option(help="Also the activations kept for the backward (slow).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """What the model and the fusions it is compared with cost: exact counts of one sample, not timings."""
    rows = []
    for name, variant in track(costs.VARIANTS.items(), "counting", console=err, transient=True):
        config = _config(preset, changes, **variant)
        total = costs.macs(config, text_length).total
        row: dict[str, Any] = {"variant": name, "gmac": total / 1e9, "gflop": 2 * total / 1e9}
        row["parameters"] = costs.parameters(config)
        if saved:
            for column, backend in (("saved_mib", None), ("saved_mib_plain", "reference")):
                row[column] = costs.saved_bytes(config, text_length, backend=backend) / 2**20
        rows.append(row)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("variant", "GMAC", "2 x GMAC", "parameters (M)", *(["saved MiB", "plain"] if saved else []))
    for row in rows:
        kept = [f"{row[key]:.0f}" for key in ("saved_mib", "saved_mib_plain")] if saved else []
        counts = [f"{row['gmac']:.1f}", f"{row['gflop']:.1f}", f"{row['parameters'] / 1e6:.1f}"]
        table.add_row(row["variant"], *counts, *kept)
    Console().print(table)
    typer.echo(NOTE)


@app.command()
def describe(
    checkpoint: Annotated[Path | None, typer.Argument(help="A saved model; default: the preset.")] = None,
    preset: Preset = "base",
    changes: Changes = None,
) -> None:
    """Configuration, parameters and operations, part by part."""
    if checkpoint is None:
        config = _config(preset, changes)
    else:
        config = JAIRConfig.from_dict(json.loads((checkpoint / "config.json").read_text()))
    with torch.device("meta"):
        model = JAIR(config)
    macs = costs.macs(config)
    table = Table("part", "parameters (M)", "GMAC")
    for name, part in model.named_children():
        count = sum(parameter.numel() for parameter in part.parameters()) / 1e6
        gmac = getattr(macs, name, None)
        table.add_row(name, f"{count:.2f}", "" if gmac is None else f"{gmac / 1e9:.2f}")
    total = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    table.add_row("all", f"{total:.2f}", f"{macs.total / 1e9:.2f}")
    typer.echo(json.dumps(config.to_dict(), indent=2))
    Console().print(table)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that save_pretrained wrote.")],
    image: Annotated[Path, typer.Option(help="A photograph, in any format that Pillow reads.")],
    prompt: Annotated[str, typer.Option(help="What is asked.")],
    max_new_tokens: Annotated[int, typer.Option(help="Most words of the answer.")] = 16,
    num_beams: Annotated[int, typer.Option(help="Beams of a beam search; 1 = greedy.")] = 1,
) -> None:
    """Answer a question about a photograph with a saved model."""
    with err.status("loading"):
        tokenizer = load_tokenizer(checkpoint)
        model = JAIR.from_pretrained(checkpoint)
    words = torch.tensor([tokenizer(prompt).input_ids])
    with err.status("answering"):
        pixels = load_image(image, model.config.image_size)
        answer = model.generate(pixels, words, max_new_tokens=max_new_tokens, num_beams=num_beams)
    typer.echo(tokenizer.decode(answer[0], skip_special_tokens=True))


def load_image(path: Path, size: int) -> torch.Tensor:
    """A picture as pixel_values [1,3,S,S]: squeezed to a square, normalised with ImageNet's statistics."""
    numpy, pillow = optional_import("numpy"), optional_import("PIL.Image")
    picture = pillow.open(path).convert("RGB").resize((size, size), pillow.Resampling.BICUBIC)
    pixels = torch.from_numpy(numpy.array(picture)).float().permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std).unsqueeze(0)


def load_tokenizer(checkpoint: Path) -> Any:
    """The tokenizer saved beside the model; without one, ByT5's bytes, if the vocabulary has their size."""
    transformers = optional_import("transformers")
    if (checkpoint / "tokenizer_config.json").exists():
        return transformers.AutoTokenizer.from_pretrained(checkpoint)
    config = JAIRConfig.from_dict(json.loads((checkpoint / "config.json").read_text()))
    tokenizer = transformers.ByT5Tokenizer()
    if config.vocab_size != len(tokenizer):
        raise ValueError(
            f"{checkpoint}: expected a tokenizer beside the model, or vocab_size = {len(tokenizer)} "
            f"for ByT5's bytes, got vocab_size = {config.vocab_size}"
        )
    return tokenizer
