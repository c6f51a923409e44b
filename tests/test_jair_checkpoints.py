"""Saving and loading, and encoders that come from checkpoints of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from test_jair_model import SMALL, assert_close, batch, small

from jair import JAIR, JAIRConfig
from jair.baselines import FUSIONS

transformers = pytest.importorskip("transformers", reason="the extra 'models' is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="the extra 'models' is not installed")


OF_OURS = [
    {"resampler": "spatial", "stream": "text", "combination": "residual"},
    {"resampler": "tokenlearner", "combination": "none"},
]


@pytest.mark.parametrize("changes", [*({"fusion": name} for name in FUSIONS), *OF_OURS], ids=str)
def test_reloads_bit_equal(changes: dict[str, object], tmp_path: Path) -> None:
    model = small(**changes)
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = JAIR.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == value.dtype
    pixels, words, labels = batch()
    assert torch.equal(
        loaded(pixels, words, labels=labels).logits, model(pixels, words, labels=labels).logits
    )
    assert all(p.requires_grad for p in loaded.parameters())


def test_a_save_that_fails_leaves_the_model_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    model.save_pretrained(tmp_path)

    def fill(state: dict[str, torch.Tensor], file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors, "save_file", fill)
    with pytest.raises(OSError, match="no space left"):
        small(num_layers=2).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert JAIR.from_pretrained(tmp_path).config == model.config


def test_loads_in_another_dtype(tmp_path: Path) -> None:
    model = small()
    model.double().save_pretrained(tmp_path)
    loaded = JAIR.from_pretrained(tmp_path, dtype=torch.float32)
    for name, value in model.state_dict().items():
        other = loaded.state_dict()[name]
        assert other.dtype == (torch.float32 if value.is_floating_point() else value.dtype), name
        assert torch.equal(other, value.to(other.dtype)), name


def test_unknown_and_missing_parts_are_named(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps(json.loads(text) | {"shiny": 1}))
    with pytest.raises(ValueError, match="shiny: expected fields among"):
        JAIR.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads(text) | {"decoder_layers": 3}))
    with pytest.raises(ValueError, match=r"got decoder\.layers\.2\.norm1\.weight, .* missing"):
        JAIR.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads(text) | {"decoder_layers": 1}))
    with pytest.raises(ValueError, match=r"got decoder\.layers\.1\.cross_kv\.weight, .* unknown"):
        JAIR.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads(text) | {"vocab_size": 41}))
    with pytest.raises(ValueError, match=r"expected embedding\.weight of shape \[41, 32\], got \[40, 32\]"):
        JAIR.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*config\.json"):
        JAIR.from_pretrained(tmp_path / "nowhere")


def resnet(folder: Path) -> torch.nn.Module:
    settings = {"layer_type": "bottleneck", "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**settings)).eval()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model.resnet


def test_pretrained_resnet(tmp_path: Path) -> None:
    theirs = resnet(tmp_path / "resnet")
    config = JAIRConfig.preset("tiny", **SMALL, image_encoder=str(tmp_path / "resnet"))
    model = JAIR(config).eval()
    pixels = torch.randn(2, 3, 64, 64)
    # With stride 1 in the last stage ours is theirs where the strides of 2 were: at every other position.
    strides = [
        m.stride for m in model.image_encoder.backbone.encoder.stages[-1].modules() if hasattr(m, "stride")
    ]
    assert set(strides) == {(1, 1)}
    for name, value in theirs.state_dict().items():
        assert torch.equal(model.image_encoder.backbone.state_dict()[name], value)
    hidden = theirs.embedder(pixels)
    first = theirs.encoder.stages[0](hidden)
    assert torch.equal(
        model.image_encoder.backbone.encoder.stages[0](model.image_encoder.backbone.embedder(pixels)), first
    )
    assert model.image_encoder(pixels).shape == (2, 256, 32)

    model.save_pretrained(tmp_path / "jair")
    (tmp_path / "resnet").rename(tmp_path / "gone")
    loaded = JAIR.from_pretrained(tmp_path / "jair")
    assert torch.equal(loaded.image_encoder(pixels), model.image_encoder(pixels))
    assert loaded.config == model.config


def test_pretrained_vit(tmp_path: Path) -> None:
    settings = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    theirs = transformers.ViTModel(
        transformers.ViTConfig(**settings, image_size=64, patch_size=16), add_pooling_layer=False
    ).eval()
    theirs.save_pretrained(tmp_path)
    model = JAIR(JAIRConfig.preset("tiny", **SMALL, image_encoder=str(tmp_path))).eval()
    pixels = torch.randn(2, 3, 64, 64)
    encoder = model.image_encoder
    expected = encoder.project(theirs(pixels).last_hidden_state[:, 1:]) + encoder.positions
    torch.testing.assert_close(encoder(pixels), expected)


def t5(folder: Path, **changes: object) -> torch.nn.Module:
    settings = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**settings, **changes})).eval()
    model.save_pretrained(folder)
    return model


def test_pretrained_t5(tmp_path: Path) -> None:
    theirs = t5(tmp_path / "t5")
    config = JAIRConfig.preset("tiny", **SMALL, text_encoder=str(tmp_path / "t5"))
    model = JAIR(config).eval()
    pixels, words, labels = batch()
    assert torch.equal(model.embedding.weight, theirs.shared.weight)
    expected = theirs.encoder(input_ids=words).last_hidden_state
    text = model.text_encoder(model.embed(words), torch.ones(3, 6, dtype=torch.bool))
    torch.testing.assert_close(text, expected)

    model = model.double()
    logits = model(pixels, words, labels=labels).logits
    left = torch.cat([torch.zeros(3, 3, dtype=torch.long), words], 1)
    assert_close(model(pixels, left, labels=labels).logits, logits)
    hidden = torch.randn(2, 32, dtype=torch.float64)
    assert_close(model.lm_head(hidden), hidden @ model.embedding.weight.T / 32**0.5)

    model.save_pretrained(tmp_path / "jair")
    (tmp_path / "t5").rename(tmp_path / "gone")
    loaded = JAIR.from_pretrained(tmp_path / "jair")
    assert torch.equal(loaded(pixels, words, labels=labels).logits, logits)


def test_names_of_classes_are_not_part_of_an_image_encoder(tmp_path: Path) -> None:
    theirs = resnet(tmp_path / "resnet")
    theirs.config.id2label = {0: "tench", 999: "toilet tissue"}
    theirs.save_pretrained(tmp_path / "resnet")
    model = JAIR(JAIRConfig.preset("tiny", **SMALL, image_encoder=str(tmp_path / "resnet")))
    model.save_pretrained(tmp_path / "jair")
    assert "tench" not in (tmp_path / "jair" / "config.json").read_text()
    assert JAIR.from_pretrained(tmp_path / "jair").config == model.config


@pytest.mark.parametrize("damage", ["cut", "other sizes"])
def test_a_damaged_image_encoder_is_named(damage: str, tmp_path: Path) -> None:
    resnet(tmp_path)
    if damage == "cut":
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:3000])
    else:
        settings = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(settings | {"embedding_size": 12}))
    message = "image_encoder: expected a checkpoint whose weights fit its config.json, got '"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        JAIR(JAIRConfig.preset("tiny", **SMALL, image_encoder=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_weights_of_another_kind_of_number_are_refused(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.load_file(file)
    state["embedding.weight"] = state["embedding.weight"].long()
    safetensors.save_file(state, file)
    with pytest.raises(ValueError, match=r"expected embedding\.weight in one of .*, got torch\.int64"):
        JAIR.from_pretrained(tmp_path)
    for dtype in ("float32", torch.int8):
        with pytest.raises(TypeError, match=r"dtype: expected a floating torch\.dtype or None, got"):
            JAIR.from_pretrained(tmp_path, dtype=dtype)


@pytest.mark.parametrize("change", ["one in another dtype", "none computes in it", "a count"])
def test_weights_in_dtypes_that_no_model_has_are_refused(change: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.load_file(file)
    count = next(name for name in state if name.endswith("num_batches_tracked"))
    if change == "one in another dtype":
        state["decoder.norm.bias"] = state["decoder.norm.bias"].half()
        message = "decoder.norm.bias in torch.float64 like the others, got torch.float16"
    elif change == "a count":
        state[count] = state[count].int()
        message = f"{count} in torch.int64, got torch.int32"
    else:
        state = {n: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for n, v in state.items()}
        message = (
            "in one of torch.float64, torch.float32, torch.float16, torch.bfloat16, got torch.float8_e4m3fn"
        )
    safetensors.save_file(state, file)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        JAIR.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"{file}: expected ")


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    t5(tmp_path / "t5", d_model=16)
    resnet(tmp_path / "resnet")
    cases = {
        r"text_encoder: expected a checkpoint with d_model = 32 like the model, got 16": {
            "text_encoder": "t5"
        },
        r"image_encoder: expected a checkpoint of resnet or vit, got one of t5": {"image_encoder": "t5"},
        r"text_encoder: expected a checkpoint of t5, got one of resnet": {"text_encoder": "resnet"},
    }
    for message, fields in cases.items():
        paths = {name: str(tmp_path / folder) for name, folder in fields.items()}
        with pytest.raises(ValueError, match=message):
            JAIR(JAIRConfig.preset("tiny", **SMALL, **paths))


def test_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    resnet(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["resnet.embedder.embedder.convolution.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"expected all weights of ResNetModel, got none for .*convolution\.weight"
    ):
        JAIR(JAIRConfig.preset("tiny", **SMALL, image_encoder=str(tmp_path)))
