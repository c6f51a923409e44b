"""Biases that cancel most of the product they are added to: they go in before the sum is rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jair_kernels import _library
from jair_kernels.testing import Expectation, FusionCase, Sample

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

GATED, LAYER = "fused_gated_fusion", "fused_transformer_layer"
FORMS: dict[str, tuple[str, dict[str, Any], str]] = {  # with the vector that ends in w1
    "jair": (GATED, {"form": "jair"}, "norm_t_bias"),
    "flamingo": (GATED, {"form": "flamingo"}, "norm_mlp_bias"),
    "layer": (LAYER, {}, "norm2_bias"),
}
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def low(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def tensors(form: str, **options: Any) -> tuple[FusionCase, dict[str, Any]]:
    case = FusionCase(FORMS[form][0], 2, 20, 20, 32, h=4, hidden=256, options=FORMS[form][1], **options)
    return case, dict(case.sample(torch.float64).tensors)


def check(case: FusionCase, changed: dict[str, Any], dtype: torch.dtype) -> None:
    given = case.sample(torch.float64)
    Expectation.of(Sample(case.op, case.name, changed, given.options, given.dy).to(dtype)).check("cpu")


@forms
@pytest.mark.parametrize("size", [0.5, 1.0])
def test_before_the_gelu(form: str, size: float, low: torch.dtype) -> None:
    case, t = tensors(form)
    before = FORMS[form][2]
    t[before] = t[before] + 1
    t["w1"] = t["w1"] + size
    t["b1"] = t["b1"] - t["w1"] @ t[before]
    check(case, t, low)


@forms
def test_after_the_mlp(form: str, low: torch.dtype) -> None:
    case, t = tensors(form, absent=("beta",))
    t["w2"] = t["w2"] + 0.8
    t["b1"] = t["b1"] + 1
    draws = torch.randn(1000, case.hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t["b2"] = -t["w2"] @ torch.nn.functional.gelu(draws + t["b1"]).mean(0)
    check(case, t, low)


@forms
def test_after_attention(form: str, low: torch.dtype) -> None:
    """Values that are nearly alike; the gates must not learn from what rounding leaves of their sum."""
    case, t = tensors(form, gates="channels")
    values = t["bqkv"][-case.width :] if form == "layer" else t["bv"]
    values += 600 if form == "layer" else 40
    t["bo"] = t["bo"] - t["wo"] @ values
    check(case, t, low)
