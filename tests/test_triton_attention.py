"""The Triton kernels of cross-attention, and the ops composed of them, in triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from interpreter import interpreted, outside, repaired, run_interpreted  # noqa: F401 - a fixture

from jair_kernels import _triton
from jair_kernels.testing import Expectation, FusionCase, run

ATTENTION = "fused_cross_attention"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CASES = [
    FusionCase(ATTENTION, 2, 5, 33, 24),
    FusionCase(ATTENTION, 1, 1, 1, 16, h=1),
    FusionCase(ATTENTION, 2, 17, 70, 40, h=4, h_kv=2),
    FusionCase(ATTENTION, 3, 5, 9, 16, h=2, h_kv=1, mask="nan"),
    FusionCase(ATTENTION, 3, 7, 33, 16, h=2, h_kv=1, mask="nan", ranges="wild"),
    FusionCase(ATTENTION, 2, 6, 33, 16, ranges="media"),
    FusionCase(ATTENTION, 2, 5, 20, 16, layout="transposed"),
    FusionCase(ATTENTION, 2, 5, 20, 16, layout="sliced", mask="some"),
    FusionCase(ATTENTION, 2, 5, 7, 16, values="huge_score"),
    FusionCase(ATTENTION, 0, 5, 7, 16),
]
COMPOSED = [
    FusionCase("fused_latent_resample", 2, 5, 9, mask="nan", options={"method": "projected"}),
    FusionCase("fused_latent_resample", 2, 5, 9, mask="nan", options={"method": "absorbed"}),
    FusionCase("fused_gated_fusion", 2, 5, 9, mask="nan", ranges="wild"),
    FusionCase("fused_gated_fusion", 2, 5, 9, options={"form": "flamingo"}),
    FusionCase("fused_transformer_layer", 2, 9, 9, mask="nan"),
    FusionCase("fused_transformer_layer", 2, 9, 9, options={"causal": True}),
]


@contextmanager
def short_segments() -> Iterator[None]:
    """Keys split into segments of one block, as a small batch on a GPU has them."""
    table = _triton.table()
    before = {key: dict(config) for key, config in table.items()}
    for key, config in table.items():
        if key.startswith("cross_attention"):
            config.update(SEGMENT=16, BLOCK_N=16, BLOCK_M=16)
    try:
        yield
    finally:
        table.update(before)


@outside
def test_in_the_interpreter() -> None:
    assert run_interpreted(__file__) >= 40


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention(case: FusionCase, dtype: torch.dtype) -> None:
    Expectation.of(case.sample(dtype)).check("triton")


@interpreted
@pytest.mark.parametrize("case", CASES[2:6], ids=lambda case: case.name)
def test_keys_in_segments(case: FusionCase) -> None:
    with short_segments():
        Expectation.of(case.sample()).check("triton")


@interpreted
@pytest.mark.parametrize("case", COMPOSED, ids=lambda case: f"{case.op}-{case.name}")
def test_composed(case: FusionCase) -> None:
    Expectation.of(case.sample()).check("triton")


@interpreted
def test_two_runs_are_bit_equal() -> None:
    sample = FusionCase(ATTENTION, 2, 5, 40, 24, mask="some").sample()
    with short_segments():
        first, second = run(sample, "triton"), run(sample, "triton")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@interpreted
def test_keys_that_are_not_finite_stay_with_those_who_attend_them() -> None:
    sample = FusionCase(ATTENTION, 1, 4, 20, 16, ranges="media").sample()
    sample.tensors["k"][:, :, 7] = float("nan")
    ours, reference = run(sample, "triton"), run(sample, "reference")
    for name, value in reference.items():
        if name in ("dk", "dv"):  # of the key itself: NaN, but 0 where the reference filled it
            ours[name][:, :, 7] = value[:, :, 7] = 0
        assert torch.equal(ours[name].isnan(), value.isnan()), name
        assert torch.allclose(ours[name].nan_to_num(), value.nan_to_num(), atol=1e-5), name
