"""jair eval, jair report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress

from jair._checks import device as check_device
from jair._files import check_file
from jair.encoders import optional_import
from jair.model import JAIR
from jair.training.checkpoint import resolve


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A saved model, a run, or tiny, which comes with jair.")],
    source: Annotated[str, typer.Option(help="KIND:PATH[,task=...], the data to answer.")],
    split: Annotated[str, typer.Option(help="Which part of the data: val, test, ...")] = "val",
    limit: Annotated[int | None, typer.Option(help="Answer the first examples only.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the answers here, for the benchmark.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples at a time.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer; default: what fits.")] = None,
    num_beams: Annotated[int, typer.Option(help="Beams of a beam search; 1 = greedy.")] = 1,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail on an example that cannot be read.")] = False,
) -> None:
    """Score a saved model's answers; the last line printed is a JSON object with the scores.

    To test questions that are published without answers, as --split test of vqav2, they are only written.
    """
    from jair.commands import err
    from jair.data.records import told
    from jair.data.sources import SourceSpec, open_source
    from jair.data.tokenizers import load_tokenizer
    from jair.evaluation import evaluate as run
    from jair.evaluation import write_submission

    spec = SourceSpec.parse(source)
    if out is not None:
        check_file("--out", out)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device("--device", device)
    checkpoint = resolve(checkpoint)
    with err.status("loading"):
        model = JAIR.from_pretrained(checkpoint, dtype=torch.float32)
        tokenizer = load_tokenizer(checkpoint)
        opened = open_source(spec, split, strict=strict, image_size=model.config.image_size)
    if not opened.answered and out is None:
        raise ValueError(
            f"--out: expected a file, since {opened.name} {split} has nothing to score, got none"
        )
    total = opened.size if limit is None else min(limit, opened.size)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("answering", total=total)
        result = run(
            model,
            tokenizer,
            opened,
            batch_size=batch_size,
            limit=limit,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            device=device,
            progress=lambda done: progress.update(task, completed=done),
        )
    predictions = result.pop("predictions")
    for line in told(opened):
        typer.echo(line, err=True)
    if not opened.answered:
        typer.echo(f"nothing to score: no answers are published to {opened.name} {split}", err=True)
    typer.echo(json.dumps({"checkpoint": str(checkpoint), "split": split, **result}))
    if out is not None:
        write_submission(out, opened.metric, predictions)


def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders that jair train wrote.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and its plots.")] = Path("report"),
    attention: Annotated[
        Path | None, typer.Option(help="A model or a run; draws what its tokens see.")
    ] = None,
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


def ask(
    model: JAIR, tokenizer: Any, image: Any, prompt: str, max_new_tokens: int | None, num_beams: int = 1
) -> str:
    """The answer to one question about a picture, its words numbered as in training and in `jair eval`.

    Raises:
        ValueError: --prompt has more words than the model reads, where those would be cut.
    """
    from jair.data.collate import Collator
    from jair.data.examples import Example

    config = model.config
    longest = config.max_text_length - 1  # and the end-of-sequence word
    count = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    if count > longest:
        raise ValueError(f"--prompt: expected at most {longest} words of the tokenizer, got {count}")
    collate = Collator(tokenizer, config.image_size, config.max_text_length, 1, train=False)
    batch = collate([Example(image, prompt, "", (), "")])
    pixels, words, mask = (batch[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    said = model.generate(pixels, words, mask, max_new_tokens, num_beams=num_beams)
    answer: str = tokenizer.decode(said[0], skip_special_tokens=True)
    return answer.strip()


def _attention_sheet(checkpoint: Path, image: Path, prompt: str | None, out: Path) -> Path:
    """Draw the sheet as out/attention.png."""
    from jair import plots
    from jair.attention_maps import image_attention, sheet
    from jair.data.images import IMAGENET_MEAN, IMAGENET_STD, read_image, to_pixels
    from jair.data.tokenizers import load_tokenizer

    checkpoint = resolve(checkpoint)
    model = JAIR.from_pretrained(checkpoint, dtype=torch.float32)
    picture = read_image(image)
    pixels = to_pixels(picture, model.config.image_size).unsqueeze(0)
    maps = image_attention(model, pixels)[0]
    title = []
    if prompt is not None:
        answer = ask(model, load_tokenizer(checkpoint), picture, prompt, model.config.max_target_length)
        title = [prompt, answer]
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    seen = (pixels[0].permute(1, 2, 0) * std + mean).clamp(0, 1)
    path = out / "attention.png"
    plots.save(lambda: sheet(seen, maps, title), path)
    return path
