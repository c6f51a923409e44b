"""fused_token_pool on the CPU against float64: all gradients, dtypes and instruction sets."""

from __future__ import annotations

import pytest
import torch
from cases import by_name, far_apart, layouts, shapes, values

from jair_kernels import fused_token_pool
from jair_kernels.testing import Case, Sample, assert_accurate, run

OP = "fused_token_pool"
OPTIONS = [{"weighting": w, "reduction": r} for w in ("softmax", "sigmoid") for r in ("sum", "mean")]
OTHERS = [Case(OP, 2, n, 96, 8, options=o) for o in OPTIONS[1:] for n in (1, 7, 197)]
CASES = (
    shapes(OP)
    + OTHERS
    + values(OP)
    + values(OP, weighting="sigmoid")
    + layouts(OP)
    + layouts(OP, weighting="sigmoid")
)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_accurate(case, target_dtype, expectation):
    expectation(case, target_dtype).check("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighting", ["softmax", "sigmoid"])
def test_many_tokens(dtype, weighting):
    assert_accurate(Case(OP, 1, 50176, 32, 4, options={"weighting": weighting}).sample(dtype), "cpu")


@pytest.mark.parametrize("axis", [0, 1], ids=["images", "tokens"])
def test_more_than_2_31_elements_apart(axis):
    near = Case(OP, 2, 3, 32, 4).sample(torch.bfloat16)
    try:
        far = far_apart(near, axis)
    except RuntimeError as error:
        pytest.skip(f"no address space for a tensor of 2^31 elements: {error}")
    assert_same(run(far, "cpu"), run(near, "cpu"))


def test_more_than_2_31_elements_read():
    image = torch.randn(1, 1024, 32, generator=torch.Generator().manual_seed(0))
    scores = torch.randn(1, 1024, 1, generator=torch.Generator().manual_seed(1))
    count = 2**16 + 3
    y = fused_token_pool(image.expand(count, -1, -1), scores.expand(count, -1, -1), backend="cpu")
    assert (y == fused_token_pool(image, scores, backend="cpu")).all()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_gradcheck(options, isa):
    sample = Case(OP, 2, 5, 9, 3, mask="some", options=options).sample(torch.float64)
    x, scores = (sample.tensors[name].requires_grad_() for name in ("x", "scores"))

    def function(x, scores):
        return fused_token_pool(x, scores, mask=sample.tensors["mask"], **options, backend="cpu")

    assert torch.autograd.gradcheck(function, (x, scores))


def test_one_token_is_itself(target_dtype):
    result = run(Case(OP, 2, 1, 96, 8).sample(target_dtype), "cpu")
    x = Case(OP, 2, 1, 96, 8).sample(target_dtype).tensors["x"]
    assert (result["y"] == x).all()
    assert not result["dscores"].any()


def test_scores_of_minus_infinity_leave_tokens_out(target_dtype):
    sample = Case(OP, 2, 7, 48, 3, mask="some").sample(target_dtype)
    given, keep = sample.tensors["scores"], sample.tensors["mask"]
    given.masked_fill_(~keep.unsqueeze(-1), -torch.inf)
    masked = run(sample, "cpu")
    del sample.tensors["mask"]
    assert_same(run(sample, "cpu"), masked)


def test_scores_of_minus_infinity_alone_give_zeros(target_dtype):
    sample = Case(OP, 2, 7, 48, 3).sample(target_dtype)
    sample.tensors["scores"][0, :, 1] = -torch.inf
    result = run(sample, "cpu")
    assert not result["y"][0, 1].any()
    assert not result["dscores"][0, :, 1].any()
    others = Case(OP, 2, 7, 48, 3).sample(target_dtype)
    for name in ("x", "scores"):
        others.tensors[name] = others.tensors[name][1:]
    alone = run(Sample(OP, "second", others.tensors, others.options, others.dy[1:]), "cpu")
    assert all(torch.equal(result[name][1:], value) for name, value in alone.items())
    assert all(t.isfinite().all() for t in result.values())


def assert_same(ours, theirs):
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
