"""Validations: of the model that is saved, of sources that can be read."""

from __future__ import annotations

import threading
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("tensorboard", reason="the extra 'train' is not installed")
from PIL import Image
from training_runs import arguments, records, run, start
from typer.testing import CliRunner

from jair import JAIR
from jair.commands import app
from jair.data.collate import Collator
from jair.data.scenes.source import ScenesSource
from jair.data.sources import BadExample, RecordSource
from jair.data.tokenizers import bytes_tokenizer
from jair.training import checkpoint
from jair.training.parallel import Workers
from jair.training.validation import Validation


def loss_of_saved(out: Path, count: int) -> float:
    """The newest checkpoint's, on the first scenes of the split val."""
    model = JAIR.from_pretrained(checkpoint.resolve(out)).eval()
    config = model.config
    lengths = (config.image_size, config.max_text_length, config.max_target_length)
    batch = Collator(bytes_tokenizer(), *lengths)(list(ScenesSource("val", image_size=32).evaluation(count)))
    with torch.no_grad():
        return float(model(**batch).loss)


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_what_is_saved_is_validated(ema: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--steps", "6", "--lr", "0.01", "--val", "scenes", "--val-examples", "6", "--ema", ema)
    made = CliRunner().invoke(app, arguments(out, *options))
    assert made.exit_code == 0, made.output
    assert records(out)[-1]["val_loss"] == pytest.approx(loss_of_saved(out, 6), rel=1e-5)


def test_two_processes_validate_what_is_saved(tmp_path: Path) -> None:
    """Batch norms have seen other pictures in each; a resumed run measures what an unbroken one has."""
    out = tmp_path / "run"
    options = ("--steps", "6", "--lr", "0.01", "--val", "scenes", "--val-examples", "6")
    run(arguments(out, *options), processes=2)
    assert records(out)[-1]["val_loss"] == pytest.approx(loss_of_saved(out, 6), rel=1e-6)


class Board:
    """Where processes, here threads, lay down what each has and take up what all have."""

    def __init__(self, count: int) -> None:
        self.barrier, self.values = threading.Barrier(count, timeout=60), [None] * count

    def meet(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


@dataclass(frozen=True)
class Together(Workers):
    """One of several processes."""

    board: Board

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.board.meet(self.rank, values)).sum(0)

    def highest(self, value: int) -> int:
        return max(self.board.meet(self.rank, value))


def numbers(count: int, bad: Container[int] = (), read: list[int] | None = None) -> RecordSource:
    """A source of examples that are numbers; `read` keeps those that were asked for."""

    def make(record: int, generator: np.random.Generator) -> Any:
        if read is not None:
            read.append(record)
        if record in bad:
            raise BadExample("missing image", f"{record}.jpg")
        return record

    return RecordSource("numbers/count", "exact", list(range(count)), make, seed=0)


def measured(source: RecordSource, workers: Workers, limit: int) -> tuple[dict[str, Any], list[list[int]]]:
    """What a model that knows some numbers better than others gets, and the batches it was called with."""
    calls: list[list[int]] = []

    def collate(examples: list[int]) -> dict[str, Any]:
        calls.append(examples)
        return {}

    def logits(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.tensor(calls[-1])[:, None]
        return torch.nn.functional.one_hot(labels, 32) * (labels % 3)[..., None].double(), labels

    made = Validation([source], collate, examples=limit, batch_size=4, workers=workers)  # type: ignore[arg-type]
    return made.measure(logits), calls


@pytest.mark.parametrize(
    ("count", "limit", "bad"),
    [
        (3, 100, ()),
        (4, 100, ()),
        (7, 100, ()),
        (20, 9, ()),
        (20, 15, (1, 3, 4, 5, 7)),
        (1, 5, ()),  # the second process has none
        (8, 7, (1, 3, 5)),  # none that it can read
    ],
)
def test_processes_share_a_source(count: int, limit: int, bad: tuple[int, ...]) -> None:
    """Each example is read by one of them, all are called equally often, the result is that of one alone."""
    cpu, board = torch.device("cpu"), Board(2)
    alone, _ = measured(numbers(count, bad), Workers(0, 1, cpu), limit)
    read: list[list[int]] = [[], []]

    def process(rank: int) -> tuple[dict[str, Any], list[list[int]]]:
        return measured(numbers(count, bad, read[rank]), Together(rank, 2, cpu, board), limit)

    with ThreadPoolExecutor(2) as pool:
        found, calls = zip(*pool.map(process, range(2)), strict=True)
    for result in found:
        assert result == pytest.approx(alone, rel=1e-12)
    assert len(calls[0]) == len(calls[1])
    checked = next(i for i in range(count) if i not in bad) + 1  # until the first that can be read
    assert [rows[checked:] for rows in read] == [list(range(rank, min(count, limit), 2)) for rank in range(2)]


def test_a_source_that_cannot_be_read_is_named_before_the_first_step() -> None:
    message = (
        "val: expected numbers/count to have an example that can be read among the first 3, "
        "got none: missing image"
    )
    settings: dict[str, Any] = {"batch_size": 4, "workers": Workers(0, 1, torch.device("cpu"))}
    with pytest.raises(ValueError, match=message):
        Validation([numbers(5), numbers(4, range(4))], None, examples=3, **settings)  # type: ignore[arg-type]
    Validation([numbers(5, range(4))], None, examples=5, **settings)  # type: ignore[arg-type]


def write_captions(folder: Path, count: int) -> str:
    """A folder of `count` captions, each split with its first photograph alone, as a source."""
    for split in ("train", "val"):
        photo = folder / split / "000000000.jpg"
        photo.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(photo)
        (folder / f"{split}.tsv").write_text("a dog\thttp://a\n" * count)
    return f"cc:{folder}"


def test_strict_is_for_validation_too(tmp_path: Path) -> None:
    words = ("--val", write_captions(tmp_path / "cc", 2), "--strict", "--steps", "1")
    made = CliRunner().invoke(app, arguments(tmp_path / "run", *words))
    missing = tmp_path / "cc" / "val" / "000000001.jpg"
    assert str(made.exception) == f"cc/caption: {missing}: missing image"


def test_what_any_process_skipped_is_named(tmp_path: Path) -> None:
    options = ("--val", write_captions(tmp_path / "cc", 4), "--steps", "1")
    process = start(arguments(tmp_path / "run", *options), processes=2)
    told = [line for line in process.communicate(timeout=120)[1].splitlines() if " skipped, " in line]
    assert process.returncode == 0
    photos = [f"{tmp_path / 'cc' / 'val'}/{number:09d}.jpg" for number in range(4)]
    assert told == [
        f"cc/caption: 1 skipped, missing image: {photos[2]}",
        f"cc/caption: 2 skipped, missing image: {photos[1]}, {photos[3]}",
    ]


def test_folders_of_one_kind_are_told_apart(tmp_path: Path) -> None:
    words = []
    for folder in ("cc3m", "cc12m"):
        source = write_captions(tmp_path / folder, 1)
        words += ["--source", source, "--val", source]
    out = tmp_path / "run"
    made = CliRunner().invoke(app, arguments(out, *words, "--steps", "1"))
    assert made.exit_code == 0, made.output
    step, validation = records(out)
    assert (
        list(step["probabilities"])
        == list(validation["val_losses"])
        == ["cc/caption:cc3m", "cc/caption:cc12m"]
    )
