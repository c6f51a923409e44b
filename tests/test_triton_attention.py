"""The Triton kernels of cross-attention, and the ops composed of them, in triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from interpreter import interpreted, outside, repaired, run_interpreted  # noqa: F401 - a fixture

from jair_kernels import _triton
from jair_kernels.cross_attention import triton_once
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
    FusionCase(ATTENTION, 1, 64, 96, 64, h=2, h_kv=1, ranges="media"),
    FusionCase(ATTENTION, 2, 5, 20, 16, layout="transposed"),
    FusionCase(ATTENTION, 2, 5, 20, 16, layout="sliced", mask="some"),
    FusionCase(ATTENTION, 2, 5, 7, 16, values="huge_score"),
    FusionCase(ATTENTION, 0, 5, 7, 16),
]
# As many queries of the heads that share one as a tile holds, and one token more.
BORDER = [FusionCase(ATTENTION, 1, l, 40, 16, h=4, h_kv=2, mask="nan") for l in (32, 33)]
BORDER += [FusionCase(ATTENTION, 1, l, 33, 16, mask="nan", ranges="wild") for l in (64, 65)]
WIDE = [
    FusionCase(ATTENTION, 1, 3, 5, 96, h=1),
    FusionCase("fused_latent_resample", 1, 3, 5, 96, h=1, options={"method": "projected"}),
    FusionCase("fused_gated_fusion", 1, 3, 5, 96, h=1),
    FusionCase("fused_transformer_layer", 1, 5, 5, 96, h=1),
]
COMPOSED = [
    FusionCase("fused_latent_resample", 2, 5, 9, mask="nan", options={"method": "projected"}),
    FusionCase("fused_latent_resample", 2, 5, 9, mask="nan", options={"method": "absorbed"}),
    FusionCase("fused_gated_fusion", 2, 5, 9, mask="nan", ranges="wild"),
    FusionCase("fused_gated_fusion", 2, 5, 9, options={"form": "flamingo"}),
    FusionCase("fused_transformer_layer", 2, 9, 9, mask="nan"),
    FusionCase("fused_transformer_layer", 2, 9, 9, options={"causal": True}),
]


@pytest.fixture(params=[True, False], ids=["once", "in two"])
def once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The backward of few queries, and that of many for them."""
    if not request.param:
        monkeypatch.setattr(triton_once, "fits", lambda q, k: False)
    return bool(request.param)


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
@pytest.mark.parametrize("case", [*CASES, *BORDER], ids=lambda case: case.name)
def test_two_kernels_for_few_queries(case: FusionCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_once, "fits", lambda q, k: False)
    Expectation.of(case.sample()).check("triton")


@interpreted
@pytest.mark.parametrize("case", BORDER, ids=lambda case: case.name)
def test_at_the_border_of_a_tile(case: FusionCase) -> None:
    sample = case.sample()
    q, k = (sample.tensors[name].transpose(1, 2) for name in "qk")
    assert triton_once.fits(q, k) == (case in BORDER[::2])
    Expectation.of(sample).check("triton")


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_key_leaves_nothing_to_learn_for_scores(dtype: torch.dtype, once: bool) -> None:
    result = run(FusionCase(ATTENTION, 2, 7, 1, 24).sample(dtype), "triton")
    assert not result["dq"].any()
    assert not result["dk"].any()


@interpreted
@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["q", "dout"])
def test_a_broken_query_does_not_reach_masked_keys(name: str, junk: float, once: bool) -> None:
    sample = FusionCase(ATTENTION, 2, 5, 70, 24, mask="some").sample()
    broken = sample.dy if name == "dout" else sample.tensors["q"]
    broken[0, :, 2] = junk
    result = run(sample, "triton")
    left_out = ~sample.tensors["mask"][:, None, :, None].expand_as(result["dk"])
    assert not result["dk"][left_out].any()
    assert not result["dv"][left_out].any()
    assert not result["dv" if name == "dout" else "dk"][0].isfinite().all()
    assert all(result[gradient][1].isfinite().all() for gradient in ("dq", "dk", "dv"))


@interpreted
@pytest.mark.parametrize("case", [*CASES[2:6], CASES[8]], ids=lambda case: case.name)
def test_keys_in_segments(case: FusionCase, once: bool) -> None:
    with short_segments():
        Expectation.of(case.sample()).check("triton")


@interpreted
@pytest.mark.parametrize("mask", [None, "some", "row"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_an_offset_of_all_keys_does_not_reach_dq(dtype: torch.dtype, mask: str | None, once: bool) -> None:
    expectation = Expectation.of(
        FusionCase(ATTENTION, 2, 5, 130, 24, values="shifted", mask=mask).sample(dtype)
    )
    expectation.check("triton")
    with short_segments():
        expectation.check("triton")


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
def test_keys_that_are_not_finite_stay_with_those_who_attend_them(once: bool) -> None:
    sample = FusionCase(ATTENTION, 1, 4, 20, 16, ranges="media").sample()
    sample.tensors["k"][:, :, 7] = float("nan")
    ours, reference = run(sample, "triton"), run(sample, "reference")
    for name, value in reference.items():
        if name in ("dk", "dv"):  # of the key itself: NaN, but 0 where the reference filled it
            ours[name][:, :, 7] = value[:, :, 7] = 0
        assert torch.equal(ours[name].isnan(), value.isnan()), name
        assert torch.allclose(ours[name].nan_to_num(), value.nan_to_num(), atol=1e-5), name


@interpreted
@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.op)
def test_wide_heads_in_float32_are_refused(case: FusionCase) -> None:
    """By composed ops too; not where the products are narrower, or there is no such product."""
    with pytest.raises(ValueError, match="it takes head widths up to 64 in float32, got 96"):
        run(case.sample(), "triton")
    Expectation.of(case.sample(torch.bfloat16)).check("triton")
    if case.op == "fused_latent_resample":
        Expectation.of(case.sample().with_options(method="absorbed")).check("triton")
    mixed = replace(case.sample(), dy=case.sample(torch.bfloat16).dy)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(mixed, "triton")["y"].dtype == torch.bfloat16
