"""JAIRConfig: presets, changes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jair import JAIRConfig


def test_base_is_the_default_and_large_is_wider() -> None:
    base, large = JAIRConfig.preset("base"), JAIRConfig.preset("large")
    assert base == JAIRConfig()
    assert (base.dim, base.num_heads, base.mlp_dim) == (768, 12, 2048)
    assert (base.num_latents, base.iterations, base.num_layers) == (64, 4, 32)
    assert (base.fusion, base.stream) == ("joint_adaptive", "joint")
    assert (base.combination, base.resampler) == ("weighted", "latent")
    assert (large.dim, large.num_heads, large.mlp_dim) == (1024, 16, 2816)
    assert (large.num_latents, large.iterations, large.num_layers) == (64, 4, 32)


def test_an_integer_eps_becomes_a_float() -> None:
    assert type(JAIRConfig.preset("tiny", eps=1).eps) is float


def test_changes_and_json() -> None:
    config = JAIRConfig.preset("tiny", stream="text", num_layers=0)
    assert config == dataclasses.replace(JAIRConfig.preset("tiny"), stream="text", num_layers=0)
    assert JAIRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_numpys_integers_become_ints_that_json_takes() -> None:
    sizes = {"dim": 96, "num_layers": 0, "eos_token_id": 3}
    config = JAIRConfig.preset("tiny", **{name: np.int64(value) for name, value in sizes.items()})
    assert config == JAIRConfig.preset("tiny", **sizes)
    assert JAIRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"streem": 1, "latents": 2},
            "streem, latents: expected fields among image_size, .*, got unknown ones",
        ),
        ({"dim": 0}, "dim: expected an int >= 1, got 0"),
        ({"dim": 100, "num_heads": 12}, "num_heads: expected a divisor of dim = 100, got 12"),
        ({"dim": 1024, "num_heads": 2}, "num_heads: expected a head width d of at most 256, got 512"),
        ({"num_layers": -1}, "num_layers: expected an int >= 0, got -1"),
        ({"fusion": "add"}, "fusion: expected 'joint_adaptive' or 'concat' .* got 'add'"),
        ({"stream": "image"}, "stream: expected 'joint' or 'text', got 'image'"),
        ({"combination": None}, "combination: expected .* got None"),
        ({"resampler": "mean"}, "resampler: expected 'latent' or 'spatial' or 'tokenlearner', got 'mean'"),
        ({"eps": 10**400}, "eps: expected a finite number > 0, got 10000"),
        ({"num_layers": 2**31}, "num_layers: expected at most 1048576, got 2147483648"),
        (
            {"text_encoder_config": {"d_model": 8}},
            "text_encoder_config: expected None for text_encoder = 'transformer', got settings: d_model",
        ),
        ({"eps": 0.0}, "eps: expected a finite number > 0, got 0.0"),
        ({"pad_token_id": 384}, "pad_token_id: expected less than vocab_size = 384, got 384"),
        ({"eos_token_id": 0}, "eos_token_id: expected another than pad_token_id, got 0"),
    ],
)
def test_values_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JAIRConfig.preset("tiny", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 128.0}, "dim: expected an int, got float"),
        ({"num_layers": True}, "num_layers: expected an int, got bool"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing: expected a bool, got int"),
        ({"image_encoder": None}, "image_encoder: expected a str, got NoneType"),
        ({"text_encoder_config": "t5"}, "text_encoder_config: expected a dict or None, got str"),
    ],
)
def test_wrong_types(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        JAIRConfig.preset("tiny", **changes)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="preset: expected 'tiny' or 'base' or 'large', got 'huge'"):
        JAIRConfig.preset("huge")
