"""Costs and descriptions of models whose encoders are checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_jair_checkpoints import resnet, t5
from test_jair_model import SMALL

from jair import JAIR, JAIRConfig

pytest.importorskip("transformers", reason="the extra 'models' is not installed")
pytest.importorskip("typer", reason="the extra 'models' is not installed")
from typer.testing import CliRunner

from jair import cost
from jair.commands import app

T5 = {
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
}


def jair(*words: str | Path) -> str:
    outcome = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def changes(**fields: object) -> list[str]:
    """Words of --set."""
    return [word for name, value in fields.items() for word in ("--set", f"{name}={json.dumps(value)}")]


@pytest.mark.parametrize("mlp", ["relu", "gated-gelu"])
def test_closed_form_with_t5_is_what_is_counted(mlp: str) -> None:
    settings = {**T5, "feed_forward_proj": mlp}
    config = JAIRConfig.preset("tiny", **SMALL, text_encoder="t5", text_encoder_config=settings)
    macs = cost.macs(config, 9, 5)
    assert cost.counted_macs(config, 9, 5) == macs.total
    products = {"relu": 2, "gated-gelu": 3}[mlp]
    by_hand = 4 * 9 * 32 * 48 + 2 * 9 * 9 * 48 + products * 9 * 32 * 24
    assert macs.text_encoder == 2 * by_hand


def test_a_model_with_t5_is_described(tmp_path: Path) -> None:
    t5(tmp_path / "t5")
    model = JAIR(JAIRConfig.preset("tiny", **SMALL, text_encoder=str(tmp_path / "t5")))
    model.save_pretrained(tmp_path / "model")
    described = jair("describe", tmp_path / "model")
    total = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{total:.2f}" in described.splitlines()[-2]
    (line,) = [line for line in described.splitlines() if "text_encoder" in line and "│" in line]
    assert f"{cost.macs(model.config).text_encoder / 1e9:.2f}" in line
    of_preset = jair("describe", "--preset", "tiny", *changes(**SMALL, text_encoder=str(tmp_path / "t5")))
    assert of_preset == described


def test_a_model_with_an_image_encoder_from_a_folder_is_described(tmp_path: Path) -> None:
    resnet(tmp_path)
    fields = {**SMALL, "image_encoder": str(tmp_path)}
    described = jair("describe", "--preset", "tiny", *changes(**fields))
    total = sum(p.numel() for p in JAIR(JAIRConfig.preset("tiny", **fields)).parameters()) / 1e6
    assert f"{total:.2f}" in described.splitlines()[-2]


def test_costs_with_t5(tmp_path: Path) -> None:
    """Also of base, whose tables have rows of "large", which is wider than the T5."""
    wide = {**T5, "vocab_size": 32128, "d_model": 768, "num_layers": 1}
    for preset, settings, sizes in (("tiny", T5, SMALL), ("base", wide, {"num_layers": 1})):
        fields = {**sizes, "text_encoder": "t5", "text_encoder_config": settings}
        found = json.loads(jair("cost", "--preset", preset, "--no-memory", "--json", *changes(**fields)))
        rows = {(row["table"], row["label"]): row["macs"] for row in found}
        assert rows["Fusion", "ours"] == cost.macs(JAIRConfig.preset(preset, **fields)).total


def test_memory_with_t5() -> None:
    config = JAIRConfig.preset("tiny", **SMALL, text_encoder="t5", text_encoder_config=T5)
    from jair.memory import memory

    assert memory(config, 9, 5).saved > 0


def test_a_t5_of_another_width_is_refused() -> None:
    words = changes(text_encoder="t5", text_encoder_config=T5)
    error = CliRunner().invoke(app, ["cost", "--preset", "tiny", "--no-memory", *words]).exception
    message = "text_encoder: expected a checkpoint with d_model = 128 like the model, got 32"
    assert (type(error), str(error)) == (ValueError, message)


@pytest.mark.parametrize("name", ["image_encoder", "text_encoder"])
def test_what_is_no_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{broken")
    for folder in (tmp_path, tmp_path / "nowhere"):
        words = ["describe", "--preset", "tiny", *changes(**{name: str(folder)})]
        error = CliRunner().invoke(app, words).exception
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"{name}: expected a checkpoint, folder or hub name, got '{folder}' (")
        assert "\n" not in str(error)


RESNET = {"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}
WRONG_SETTINGS = {
    "another kind": ({"model_type": "bert"}, "expected model_type resnet or vit, got 'bert'"),
    "a kind of text": ({"model_type": "t5"}, "expected model_type resnet or vit, got 't5'"),
    "no kind": ({"hidden_sizes": [8]}, "expected model_type resnet or vit, got None"),
    "an unknown name": (
        {**RESNET, "hiden_sizes": [8], "shiny": 3},
        "expected settings of a resnet, got unknown ones: hiden_sizes, shiny",
    ),
    "a word for a list": ({**RESNET, "depths": "x"}, "expected settings of a resnet, got "),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
@pytest.mark.parametrize("command", ["cost", "describe"])
def test_wrong_settings_of_an_encoder_are_named(case: str, command: str) -> None:
    settings, message = WRONG_SETTINGS[case]
    words = [command, "--preset", "tiny", *changes(**SMALL, image_encoder_config=settings)]
    error = CliRunner().invoke(app, words + ["--no-memory"] * (command == "cost")).exception
    assert isinstance(error, ValueError), error
    assert str(error).startswith(f"image_encoder_config: {message}")
    assert "\n" not in str(error)


def test_an_encoder_for_grey_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="image_encoder: expected one for 3 colours, got num_channels 1"):
        JAIR(JAIRConfig.preset("tiny", **SMALL, image_encoder_config={**RESNET, "num_channels": 1}))


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    words = ["describe", "--preset", "tiny", *changes(image_encoder="vit_base", image_size=10)]
    error = CliRunner().invoke(app, words).exception
    assert (type(error), str(error)) == (
        ValueError,
        "image_size: expected at least the patch_size 16, got 10",
    )


@pytest.mark.parametrize("sizes", [[8], [8, 16], [8, 16, 24]])
@pytest.mark.parametrize("first", [False, True])
def test_the_grid_of_a_resnet_of_any_depth(sizes: list[int], first: bool) -> None:
    settings = {
        **RESNET,
        "layer_type": "basic",
        "hidden_sizes": sizes,
        "depths": [1] * len(sizes),
        "downsample_in_first_stage": first,
    }
    model = JAIR(JAIRConfig.preset("tiny", **SMALL, image_encoder_config=settings))
    encoder = model.image_encoder
    assert encoder(torch.randn(1, 3, 64, 64)).shape[1:] == encoder.positions.shape


def test_a_saved_model_is_described_as_it_is() -> None:
    for words in (["--preset", "base"], ["--set", "dim=64"]):
        error = CliRunner().invoke(app, ["describe", "tiny", *words]).exception
        message = "CHECKPOINT: expected no --preset and no --set beside a saved model"
        assert (type(error), str(error)) == (ValueError, message)
