"""Validations: of the model that is saved, of sources that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("tensorboard", reason="the extra 'train' is not installed")
from training_runs import arguments, records
from typer.testing import CliRunner

from jair import JAIR
from jair.commands import app
from jair.data.collate import Collator
from jair.data.scenes.source import ScenesSource
from jair.data.tokenizers import bytes_tokenizer
from jair.training import checkpoint


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
