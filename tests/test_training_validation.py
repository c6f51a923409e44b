"""Validations: of the model that is saved, of sources that can be read."""

from __future__ import annotations

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
from training_runs import arguments, records
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


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_what_is_saved_is_validated(ema: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--steps", "6", "--lr", "0.01", "--val", "scenes", "--val-examples", "6", "--ema", ema)
    made = CliRunner().invoke(app, arguments(out, *options))
    assert made.exit_code == 0, made.output
    model = JAIR.from_pretrained(checkpoint.resolve(out)).eval()
    config = model.config
    lengths = (config.image_size, config.max_text_length, config.max_target_length)
    batch = Collator(bytes_tokenizer(), *lengths)(list(ScenesSource("val", image_size=32).evaluation(6)))
    with torch.no_grad():
        assert records(out)[-1]["val_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)


class Apart(Workers):
    """One of several processes that sums nothing."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def numbers(good: int, bad: int = 0) -> RecordSource:
    """A source of examples that are numbers."""

    def make(record: int, generator: np.random.Generator) -> Any:
        if record < bad:
            raise BadExample("missing image", f"{record}.jpg")
        return record

    return RecordSource("numbers/count", "exact", list(range(bad + good)), make, seed=0)


@pytest.mark.parametrize(("good", "limit"), [(3, 100), (4, 100), (7, 100), (20, 9)])
def test_processes_share_a_source(good: int, limit: int) -> None:
    seen: list[list[list[int]]] = []
    for rank in range(2):
        calls: list[list[int]] = []

        def collate(examples: list[int], calls: list[list[int]] = calls) -> dict[str, Any]:
            calls.append(examples)
            return {}

        def logits(batch: Any, calls: list[list[int]] = calls) -> tuple[torch.Tensor, torch.Tensor]:
            labels = torch.tensor(calls[-1])[:, None]
            return torch.nn.functional.one_hot(labels, 32).float(), labels

        workers = Apart(rank, 2, torch.device("cpu"))
        made = Validation([numbers(good)], collate, examples=limit, batch_size=4, workers=workers)  # type: ignore[arg-type]
        assert made.measure(logits)["val_accuracy"] == 1
        seen.append(calls)
    first, second = seen
    count = min(good, limit)
    assert len(first) == len(second) == -(-count // 4)  # of two processes each takes part equally often
    of_first = [n for call in first for n in call]
    assert of_first == list(range(0, count, 2))
    assert sorted({n for call in second for n in call} - {*of_first}) == list(range(1, count, 2))


def test_a_source_that_cannot_be_read_is_named_before_the_first_step() -> None:
    message = (
        "val: expected numbers/count to have an example that can be read among the first 3, "
        "got none: missing image"
    )
    settings: dict[str, Any] = {"batch_size": 4, "workers": Workers(0, 1, torch.device("cpu"))}
    with pytest.raises(ValueError, match=message):
        Validation([numbers(5), numbers(0, bad=4)], None, examples=3, **settings)  # type: ignore[arg-type]
    Validation([numbers(1, bad=4)], None, examples=5, **settings)  # type: ignore[arg-type]


def test_folders_of_one_kind_are_told_apart(tmp_path: Path) -> None:
    words = []
    for folder in ("cc3m", "cc12m"):
        for split in ("train", "val"):
            photo = tmp_path / folder / split / "000000000.jpg"
            photo.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(photo)
            (tmp_path / folder / f"{split}.tsv").write_text("a dog\thttp://a\n")
        words += ["--source", f"cc:{tmp_path / folder}", "--val", f"cc:{tmp_path / folder}"]
    out = tmp_path / "run"
    made = CliRunner().invoke(app, arguments(out, *words, "--steps", "1"))
    assert made.exit_code == 0, made.output
    step, validation = records(out)
    assert (
        list(step["probabilities"])
        == list(validation["val_losses"])
        == ["cc/caption:cc3m", "cc/caption:cc12m"]
    )
