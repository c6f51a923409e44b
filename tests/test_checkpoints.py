"""Folders of checkpoints: which are kept, which is resumed, what a full disk leaves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("tensorboard", reason="the extra 'train' is not installed")
from training_runs import arguments
from typer.testing import CliRunner

from jair.commands import app
from jair.training import checkpoint


def add(out: Path, step: int, keep: int) -> Path:
    return checkpoint.write(
        out, step, lambda folder: None, {"w": torch.ones(2) * step}, {"step": step}, keep=keep
    )


def damage(folder: Path) -> None:
    (folder / "training.safetensors").write_bytes(b"half")


def names(out: Path) -> list[int]:
    return [int(path.name.removeprefix(checkpoint.PREFIX)) for path in sorted(out.iterdir())]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    good = checkpoint.write(tmp_path, 1, lambda folder: None, {"w": torch.ones(2)}, {"step": 1}, keep=2)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(tmp_path, 2, save, {"w": torch.zeros(2)}, {"step": 2}, keep=2)
    assert list(tmp_path.iterdir()) == [good]
    assert checkpoint.newest(tmp_path) == good
    (tmp_path / ".checkpoint-00000002.half").mkdir()
    good = checkpoint.write(tmp_path, 1, lambda folder: None, {"w": torch.ones(2)}, {"step": 1}, keep=2)
    assert list(tmp_path.iterdir()) == [good]
    tensors, state = checkpoint.read(good)
    assert state == {"step": 1}
    assert torch.equal(tensors["w"], torch.ones(2))
    (good / checkpoint.MARK).unlink()
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize(("keep", "left"), [(1, [600]), (2, [500, 600, 1000]), (3, [400, 500, 600, 1000])])
def test_damaged_checkpoints_do_not_count(keep: int, left: list[int], tmp_path: Path) -> None:
    for step in (300, 400, 500, 1000):
        add(tmp_path, step, keep=9)
    damage(tmp_path / "checkpoint-00001000")
    written = add(tmp_path, 600, keep=keep)
    assert names(tmp_path) == left
    assert checkpoint.newest(tmp_path) == written


def test_what_was_just_written_stays(tmp_path: Path) -> None:
    for step in (800, 900, 1):
        add(tmp_path, step, keep=2)
    assert names(tmp_path) == [1, 900]


# A process may not write files of more bytes: what a full disk does to a checkpoint.
FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from jair.training import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
out, large = Path(sys.argv[1]), {"w": torch.ones(100_000)}
checkpoint.write(out, 1, lambda folder: None, {"w": torch.ones(2)}, {"step": 1}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    checkpoint.write(out, 2, lambda folder: None, large, {"step": 2}, keep=1)
except OSError as error:
    print(error)
"""


def test_safetensors_on_a_full_disk(tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = subprocess.run([sys.executable, "-c", FULL, str(out)], capture_output=True, text=True, check=True)
    assert made.stdout.startswith(f"{out}/checkpoint-00000002: could not be written: "), made.stdout
    assert names(out) == [1]
    assert checkpoint.newest(out) == out / "checkpoint-00000001"


def test_damaged_checkpoints_alone_are_not_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = arguments(out, "--steps", "2", "--checkpoint-every", "1")
    assert CliRunner().invoke(app, words).exit_code == 0
    log = (out / "metrics.jsonl").read_text()
    for folder in out.glob("checkpoint-*"):
        damage(folder)
    made = CliRunner().invoke(app, [*words, "--resume"])
    assert isinstance(made.exception, ValueError)
    assert str(made.exception) == (
        f"--resume: expected a whole checkpoint in {out}, got damaged ones alone, "
        "the newest checkpoint-00000002"
    )
    assert (out / "metrics.jsonl").read_text() == log
    for folder in out.glob("checkpoint-*"):
        shutil.rmtree(folder)
    assert CliRunner().invoke(app, [*words, "--resume"]).exit_code == 0  # stopped before its first


def test_what_changed_is_told_with_both_values(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert CliRunner().invoke(app, arguments(out, "--steps", "1")).exit_code == 0
    words = arguments(out, "--steps", "2", "--lr", "0.5", "--keep", "3", "--resume", mlp_dim=8)
    made = CliRunner().invoke(app, words)
    assert isinstance(made.exception, ValueError)
    folder = checkpoint.resolve(out)
    assert str(made.exception) == (
        f"--resume: expected lr = 0.001, model.mlp_dim = 16 as in {folder}, got 0.5, 8"
    )


def test_bytes_have_a_vocabulary_of_their_own(tmp_path: Path) -> None:
    """A model with another would be saved without a tokenizer that it can be read with."""
    out = tmp_path / "run"
    made = CliRunner().invoke(app, arguments(out, "--steps", "1", vocab_size=512))
    assert isinstance(made.exception, ValueError)
    assert str(made.exception) == "vocab_size: expected 384 with the tokenizer 'bytes', got 512"
    assert not out.exists()
