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


RESNET, VIT = {"model_type": "resnet"}, {"model_type": "vit"}
T5 = {"model_type": "t5", "vocab_size": 429, "d_model": 128, "d_ff": 8, "num_layers": 1, "num_heads": 4}
UNUSABLE = [
    (
        "image",
        "resnet50",
        {**RESNET, "hidden_act": "boom"},
        "settings of a resnet, got some that make none (KeyError: 'boom')",
    ),
    (
        "image",
        "resnet50",
        {**RESNET, "hidden_sizes": []},
        "hidden_sizes to be ints from 1 to 1048576, got []",
    ),
    (
        "image",
        "resnet50",
        {**RESNET, "hidden_sizes": [-8], "depths": [1]},
        "hidden_sizes to be ints from 1 to",
    ),
    ("image", "resnet50", {**RESNET, "depths": [1, 1]}, "a depth for each of 4 hidden_sizes, got 2"),
    ("image", "vit_base", {**VIT, "patch_size": 0}, "patch_size to be an int from 1 to 1048576, got 0"),
    (
        "image",
        "vit_base",
        {**VIT, "hidden_size": 2**62},
        "hidden_size to be an int from 1 to 1048576, got 46",
    ),
    (
        "text",
        "t5",
        {**T5, "feed_forward_proj": "evil"},
        "settings of a t5, got some that make none (KeyError: 'evil')",
    ),
    ("text", "transformer", {"shiny": 1}, "None for text_encoder = 'transformer', got settings: shiny"),
]


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
    "deep JSON": (write("[" * 200_000), "config.json: expected JSON, got what is none ("),
    "too many words": (change(vocab_size=2**62), "config.json: vocab_size: expected at most 1048576, got 46"),
    "a vast image": (
        change(image_size=10**12),
        "config.json: image_size: expected at most 1048576, got 1000",
    ),
    "an int above all floats": (change(eps=10**400), "config.json: eps: expected a finite number > 0, got 1"),
    **{
        f"{encoder} encoder, {message}": (
            change(**{f"{encoder}_encoder_config": settings, f"{encoder}_encoder": checkpoint}),
            f"config.json: {encoder}_encoder_config: expected {message}",
        )
        for encoder, checkpoint, settings, message in UNUSABLE
    },
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


@pytest.mark.parametrize(("encoder", "checkpoint", "settings", "message"), UNUSABLE, ids=str)
@pytest.mark.parametrize("command", ["cost", "describe"])
def test_settings_that_make_no_encoder(
    command: str, encoder: str, checkpoint: str, settings: dict[str, object], message: str
) -> None:
    words = (
        "--set",
        f"{encoder}_encoder_config={json.dumps(settings)}",
        "--set",
        f"{encoder}_encoder={checkpoint}",
    )
    options = ("--set", "vocab_size=429", *(["--no-memory"] if command == "cost" else []))
    error = CliRunner().invoke(app, [command, "--preset", "tiny", *words, *options]).exception
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"{encoder}_encoder_config: expected {message}")
    assert "\n" not in str(error)


@pytest.mark.parametrize("value", ["[" * 200_000, "1" * 5000], ids=["deep JSON", "a long number"])
def test_a_value_that_json_does_not_take_is_a_word(value: str) -> None:
    error = CliRunner().invoke(app, ["describe", "--set", f"dim={value}"]).exception
    assert isinstance(error, TypeError)
    assert str(error) == "dim: expected an int, got str"


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
