"""jair report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from jair.encoders import optional_import
from jair.model import JAIR


def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders that jair train wrote.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and its plots.")] = Path("report"),
    attention: Annotated[Path | None, typer.Option(help="A saved model; draws what its tokens see.")] = None,
    image: Annotated[Path | None, typer.Option(help="The photograph for --attention.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A question to be answered above the sheet.")] = None,
) -> None:
    """Draw learning curves, sampling and losses of runs; or what the learned tokens look at in a picture."""
    optional_import("matplotlib", "train")
    if not runs and attention is None:
        raise ValueError("RUN: expected the folder of a run, or --attention with --image, got neither")
    if (attention is None) != (image is None):
        given, missing = ("--attention", "--image") if image is None else ("--image", "--attention")
        raise ValueError(f"{missing}: expected beside {given}, got none")
    if prompt is not None and attention is None:
        raise ValueError("--attention: expected beside --prompt, got none")
    if runs:
        from jair.reports import write_report
        from jair.runs import read_runs

        typer.echo(write_report(read_runs(runs), out))
    if attention is not None and image is not None:
        typer.echo(_attention_sheet(attention, image, prompt, out))


def _attention_sheet(checkpoint: Path, image: Path, prompt: str | None, out: Path) -> Path:
    """Draw the sheet as out/attention.png."""
    from jair import plots
    from jair.attention_maps import image_attention, sheet
    from jair.commands import IMAGENET_MEAN, IMAGENET_STD, load_image, load_tokenizer

    model = JAIR.from_pretrained(checkpoint)
    pixels = load_image(image, model.config.image_size)
    maps = image_attention(model, pixels)[0]
    title = []
    if prompt is not None:
        tokenizer = load_tokenizer(checkpoint)
        words = torch.tensor([tokenizer(prompt).input_ids])
        answer = model.generate(pixels, words, max_new_tokens=model.config.max_target_length)
        title = [prompt, tokenizer.decode(answer[0], skip_special_tokens=True)]
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    seen = (pixels[0].permute(1, 2, 0) * std + mean).clamp(0, 1)
    path = out / "attention.png"
    plots.save(lambda: sheet(seen, maps, title), path)
    return path
