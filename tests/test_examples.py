"""The examples run, and what they promise holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
ULP = torch.finfo(torch.float32).eps


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vit_is_as_exact_fused_as_plain(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("vit_token_learner")
    results = example.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["plain", "fused"]
    for part in ("scores", "gradients"):
        assert results["fused"][part] <= 2 * results["plain"][part] + 4 * ULP


def test_vit_is_equal_in_float64() -> None:
    example = load("vit_token_learner")
    torch.manual_seed(0)
    plain = example.ViT(example.PlainTokenLearner(example.DIM, example.NUM_TOKENS), blocks=1).double()
    fused = example.ViT(example.jair.TokenLearner(example.DIM, example.NUM_TOKENS), blocks=1).double()
    fused.load_state_dict(plain.state_dict())
    patches = example.photographs()[::3].double()
    for actual, expected in zip(example.step(fused, patches), example.step(plain, patches), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_photographs_are_cut_into_patches_row_by_row() -> None:
    example = load("vit_token_learner")
    patches = example.photographs()
    image = torch.tensor(example.load_sample_images().images[1])
    corner = image[200 + 3 * 16 : 200 + 4 * 16, 400 + 5 * 16 : 400 + 6 * 16].float() / 255
    assert patches.shape == (8, 196, 768)
    assert torch.equal(patches[7, 3 * 14 + 5], corner.flatten())
