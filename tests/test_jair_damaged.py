"""Damaged models and devices that are not here: one line, with the file or the option."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jair import JAIR, JAIRConfig

pytest.importorskip("transformers", reason="the extra 'models' is not installed")
pytest.importorskip("typer", reason="the extra 'models' is not installed")
from typer.testing import CliRunner

from jair import evaluation
from jair.commands import app
from jair.pretrained import FOLDER

NOT_HERE = "expected a device that is here, as cpu or cuda, got"


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def write(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


def change(**fields: object) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text()) | fields
        kept = {name: value for name, value in values.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return changed


DAMAGE = {
    "cut weights": (cut, "model.safetensors: expected a whole safetensors file, got a damaged one ("),
    "no weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "model.safetensors: expected",
    ),
    "broken JSON": (
        write("{broken"),
        "config.json: expected JSON, got what is none (Expecting property name",
    ),
    "a list": (write("[1, 2]"), "config.json: expected a JSON object, got list"),
    "no dim": (change(dim=None), "config.json: expected every size, got no dim"),
    "a word for a number": (change(dim="wide"), "config.json: dim: expected an int, got str"),
    "an unknown field": (change(shiny=1), "config.json: shiny: expected fields among"),
    "other sizes": (change(mlp_dim=8), "model.safetensors: expected "),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["generate", "eval", "describe"])
def test_a_damaged_model_is_named(damage: str, command: str, tmp_path: Path) -> None:
    spoil, message = DAMAGE[damage]
    shutil.copytree(FOLDER / "tiny", tmp_path / "model")
    spoil(tmp_path / "model")
    options = {
        "generate": ("--image", "photo.png", "--prompt", "What?"),
        "eval": ("--source", "scenes", "--device", "cpu"),
        "describe": (),
    }[command]
    if command == "describe" and message.startswith("model"):
        assert CliRunner().invoke(app, ["describe", str(tmp_path / "model")]).exit_code == 0
        return  # it reads no weights
    error = CliRunner().invoke(app, [command, str(tmp_path / "model"), *options]).exception
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"{tmp_path / 'model'}/{message}")
    assert "\n" not in str(error)


def test_a_config_that_is_no_mapping() -> None:
    with pytest.raises(TypeError, match=r"^values: expected a mapping, got list$"):
        JAIRConfig.from_dict([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^1: expected fields among"):
        JAIRConfig.from_dict({1: 2})  # type: ignore[dict-item]


ABSENT = ["nonsense", "meta", *([] if torch.cuda.is_available() else ["cuda"])]


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_is_not_here(device: str) -> None:
    words = ["eval", "tiny", "--source", "scenes", "--device", device]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, ValueError)
    assert str(error) == f"--device: {NOT_HERE} {device}"
    for call in (
        lambda: JAIR.from_pretrained("tiny", device=device),
        lambda: evaluation.evaluate(JAIR.from_pretrained("tiny"), None, Scenes(), device=device),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=f"^device: {re.escape(NOT_HERE)} {device}$"):
            call()


class Scenes:
    metric = "exact"
