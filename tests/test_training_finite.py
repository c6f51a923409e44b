"""A bad batch leaves no trace in a model, and what is not finite is neither saved nor in the way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("tensorboard", reason="the extra 'train' is not installed")
from safetensors.torch import load_file
from torch import nn
from training_runs import arguments, records
from typer.testing import CliRunner, Result

from jair.commands import app
from jair.reports import write_report
from jair.runs import read_run
from jair.training import checkpoint
from jair.training.batches import Batches
from jair.training.finite import RunningStatistics, broken
from jair.training.loop import Trainer


def train(out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, arguments(out, "--source", "scenes", "--warmup-steps", "0", *options))


@pytest.fixture
def bad_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of a run has one pixel that is NaN."""
    make = Batches._make

    def poisoned(self: Batches, probabilities: list[float], drawn: list[int], step: int) -> Any:
        batch = make(self, probabilities, drawn, step)
        if step == 2:
            batch.parts[0]["pixel_values"][0, 0, 0, 0] = math.nan
        return batch

    monkeypatch.setattr(Batches, "_make", poisoned)


@pytest.mark.usefixtures("bad_batch")
@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_a_bad_batch_is_left_out(ema: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--ema", ema, "--accumulate", "2", "--checkpoint-every", "1", "--keep", "3")
    made = train(out, "--steps", "3", "--val", "scenes", "--val-every", "1", "--val-examples", "6", *options)
    assert made.exit_code == 0, made.output
    steps = [record for record in records(out) if "loss" in record]
    assert [record["loss"] is None for record in steps] == [False, True, False]
    losses = [record["val_loss"] for record in records(out) if "val_loss" in record]
    assert losses[0] == losses[1]  # nothing was learned in between
    first, second, third = (load_file(out / f"checkpoint-{n:08d}" / "model.safetensors") for n in (1, 2, 3))
    running = [name for name in first if "running" in name]
    assert running
    for name, value in first.items():
        assert torch.equal(second[name], value), name
    assert not torch.equal(third[running[0]], first[running[0]])
    assert all(bool(torch.isfinite(value).all()) for value in third.values())


def test_a_validation_that_is_not_finite_is_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logits = Trainer._logits

    def infinite(self: Trainer, model: Any, batch: Any) -> Any:
        found, labels = logits(self, model, batch)
        return (found if torch.is_grad_enabled() else found * math.nan), labels

    monkeypatch.setattr(Trainer, "_logits", infinite)
    out = tmp_path / "run"
    held = ("--val", "scenes", "--val", "scenes,task=count", "--val-examples", "6")
    made = train(out, "--steps", "1", *held)
    assert made.exit_code == 0, made.output
    last = records(out)[-1]
    assert last["val_loss"] is None
    assert last["val_losses"] == {"scenes/questions": None, "scenes/count": None}
    assert last["val_accuracy"] == 0
    run = read_run(out)
    run.validations.append({"step": 2, "val_loss": 0.5, "val_accuracy": 1.0})
    page = write_report([run], tmp_path / "page").read_text()
    assert "| 0.5000 | 2 |" in page


@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_weights_that_are_not_finite_are_not_saved(
    ema: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    apply = Trainer._apply

    def spoiled(self: Trainer, loss: float) -> float | None:
        norm = apply(self, loss)
        if self.step == 2:
            saved = self.model if self.average is None else self.average.module
            saved.get_parameter("embedding.weight").data[0, 0] = math.inf
        return norm

    monkeypatch.setattr(Trainer, "_apply", spoiled)
    out = tmp_path / "run"
    made = train(out, "--steps", "2", "--checkpoint-every", "1", "--ema", ema)
    assert isinstance(made.exception, ValueError)
    wanted = "weights: expected finite ones to save after step 2, got others in embedding.weight"
    assert str(made.exception) == wanted
    assert checkpoint.newest(out) == out / "checkpoint-00000001"
    json.loads((out / "checkpoint-00000001" / "state.json").read_text())


def test_running_statistics_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    running = RunningStatistics(model)
    model(torch.randn(4, 2))
    before = {name: value.clone() for name, value in model.named_buffers()}
    running.keep()
    model(torch.full((4, 2), math.nan))
    assert broken(model) == ["1.running_mean", "1.running_var"]
    running.put_back()
    assert broken(model) == []
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
