"""fused_cross_attention on the CPU against float64: all gradients, dtypes and instruction sets."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cases import by_name

from jair_kernels import fused_cross_attention
from jair_kernels.testing import FusionCase, run

OP = "fused_cross_attention"
SHAPES = [
    FusionCase(OP, 2, l, n, d)
    for l, n, d in product((1, 7, 64), (1, 65, 197), (1, 40, 64))
    if d == 40 or l == 7
]
WIDE = [FusionCase(OP, 1, 5, 33, d) for d in (96, 128, 200, 256)]
GROUPED = [FusionCase(OP, 2, l, 70, 24, h=6, h_kv=h_kv) for l, h_kv in product((1, 9), (1, 2, 3))]
LONG = [
    FusionCase(OP, 1, 64, 1500, 32, h=4, h_kv=1),
    FusionCase(OP, 1, 3, 5000, 16, h=1),
    FusionCase(OP, 1, 16, 5000, 64, h=2, h_kv=1),
    FusionCase(OP, 1, 64, 4964, 96, h=4, h_kv=1),
]
# OpenFlamingo's blocks with media, Idefics 9b's resampler, the Q-Former, Perceiver-VL, JAIR's two modalities.
REAL = [
    FusionCase(OP, 1, 64, 320, 64, h=8, ranges="media"),
    FusionCase(OP, 1, 64, 321, 96, h=16),
    FusionCase(OP, 1, 32, 257, 64, h=12),
    FusionCase(OP, 1, 128, 185, 64, h=12),
    FusionCase(OP, 1, 64, 196, 64, h=12, mask="some"),
]
VALUES = [
    FusionCase(OP, 2, 5, n, 24, values=v) for v in ("shifted", "huge_score", "repeated") for n in (1, 7, 130)
]
MASKS = [
    FusionCase(OP, 3, 5, n, 24, h=4, h_kv=2, mask=m) for m in ("some", "row", "all", "nan") for n in (1, 70)
]
RANGES = [
    FusionCase(OP, 3, 9, n, 24, h=4, h_kv=2, mask=m, ranges=r)
    for r, m, n in product(("media", "wild"), (None, "nan"), (1, 70))
]
LAYOUTS = [
    FusionCase(OP, 2, 5, 20, 24, layout=layout, mask=mask)
    for layout in ("transposed", "sliced", "expanded")
    for mask in (None, "some")
]
OPTIONS = [FusionCase(OP, 2, 5, 20, 24, options={"scale": 0.7}), FusionCase(OP, 0, 5, 20, 24)]
CASES = SHAPES + WIDE + GROUPED + LONG + REAL + VALUES + MASKS + RANGES + LAYOUTS + OPTIONS


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_accurate(case, target_dtype, expectation):
    expectation(case, target_dtype).check("cpu")


def test_gradcheck(isa):
    sample = FusionCase(OP, 2, 3, 5, 4, h=2, h_kv=1, mask="row", ranges="wild").sample(torch.float64)
    masks = {name: sample.tensors[name] for name in ("mask", "kv_range")}
    tensors = [sample.tensors[name].requires_grad_() for name in "qkv"]
    assert torch.autograd.gradcheck(lambda *t: fused_cross_attention(*t, **masks, backend="cpu"), tensors)


def test_one_key_leaves_nothing_to_learn_for_scores(target_dtype):
    result = run(FusionCase(OP, 2, 7, 1, 24).sample(target_dtype), "cpu")
    assert not result["dq"].any()
    assert not result["dk"].any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_thread_count_changes_rounding_alone(threads):
    sample = FusionCase(OP, 1, 5, 700, 24, h=2, h_kv=1, mask="some", ranges="wild").sample(torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = run(sample, "cpu"), run(sample, "cpu")
    finally:
        torch.set_num_threads(before)
    expected = run(sample, "reference")
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["q", "dout"])
@pytest.mark.parametrize("n", [7, 200])
def test_a_broken_query_does_not_reach_masked_keys(name, junk, n, target_dtype, isa):
    sample = FusionCase(OP, 2, 5, n, 24, mask="some").sample(target_dtype)
    broken = sample.dy if name == "dout" else sample.tensors["q"]
    broken[0, :, 2] = junk
    result = run(sample, "cpu")
    left_out = ~sample.tensors["mask"][:, None, :, None].expand_as(result["dk"])
    assert not result["dk"][left_out].any()
    assert not result["dv"][left_out].any()
    assert not result["dv" if name == "dout" else "dk"][0].isfinite().all()
    assert all(result[gradient][1].isfinite().all() for gradient in ("dq", "dk", "dv"))
