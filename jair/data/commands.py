"""jair data show, jair data baselines."""

from __future__ import annotations

import json
import textwrap
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jair._checks import whole_numbers
from jair._files import check_file, replacing
from jair.data import baselines as guesses
from jair.data.examples import Example
from jair.data.records import told
from jair.data.sources import SourceSpec, open_source
from jair.encoders import optional_import

if TYPE_CHECKING:
    from PIL.Image import Image

app = typer.Typer(help="Look at data.", no_args_is_help=True)
SIDE, LINES, COLUMNS = 192, 5, 5  # of a picture on the sheet, of its words, of the sheet
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # Pillow's, by suffix

SourceOption = Annotated[str, typer.Option(help="KIND:PATH[,task=...], as in jair train.")]
Split = Annotated[str, typer.Option(help="train, val, ...")]


@app.command()
def show(
    out: Annotated[Path, typer.Argument(help="A picture: .png, .jpg, .jpeg or .webp.")],
    source: SourceOption = "scenes",
    split: Split = "train",
    count: Annotated[int, typer.Option(help="How many examples.")] = 20,
    image_size: Annotated[int, typer.Option(help="Of pictures that are drawn.")] = 64,
) -> None:
    """Draw a sheet of examples: pictures, what is asked, what is to be said."""
    format = FORMATS.get(out.suffix.lower())
    if format is None:
        raise ValueError(f"OUT: expected a file with the suffix {', '.join(FORMATS)}, got {out}")
    check_file("OUT", out)
    whole_numbers(count=count, image_size=image_size)
    opened = open_source(SourceSpec.parse(source), split, image_size=image_size)
    page = sheet(list(opened.evaluation(count)))
    with replacing(out) as file:
        page.save(file, format)
    for line in told(opened):
        typer.echo(line, err=True)
    typer.echo(out)


@app.command()
def baselines(
    source: SourceOption = "scenes",
    split: Split = "val",
    train_examples: Annotated[int, typer.Option(help="From which the guesses are learned.")] = 20_000,
    examples: Annotated[int, typer.Option(help="On which they are tried.")] = 2_000,
) -> None:
    """Accuracy of guessing from the question alone, and from it and a histogram of colours."""
    whole_numbers(train_examples=train_examples, examples=examples)
    spec = SourceSpec.parse(source)
    held = open_source(spec, split)
    if not held.answered:
        raise ValueError(f"split: expected one with published answers, got {split!r} of {spec.name}")
    train = list(islice(open_source(spec, "train").evaluation(train_examples), train_examples))
    test = list(held.evaluation(examples))
    found = {"blind": guesses.blind(train, test), "bag_of_image": guesses.bag_of_image(train, test)}
    typer.echo(json.dumps({"source": spec.name, "split": split, "examples": len(test), **found}))


def sheet(examples: list[Example]) -> Image:
    """The examples side by side, words beneath.

    Raises:
        ValueError: there are none.
    """
    if not examples:
        raise ValueError("examples: expected at least one, got none")
    pillow, drawing = optional_import("PIL.Image"), optional_import("PIL.ImageDraw")
    columns = min(COLUMNS, len(examples))
    width, height = SIDE + 12, SIDE + 14 * LINES + 12
    page: Image = pillow.new("RGB", (columns * width, -(-len(examples) // columns) * height), "white")
    canvas = drawing.Draw(page)
    for number, example in enumerate(examples):
        left, top = number % columns * width + 6, number // columns * height + 6
        page.paste(example.image.convert("RGB").resize((SIDE, SIDE)), (left, top))
        words = [*textwrap.wrap(example.prompt, 32), *textwrap.wrap(f"> {example.answer}", 32)][:LINES]
        for line, text in enumerate(words):
            canvas.text((left, top + SIDE + 2 + 14 * line), text, fill="black")
    return page
