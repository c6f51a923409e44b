"""fused_tokenlearner on the CPU against float64: all gradients, dtypes and instruction sets."""

from __future__ import annotations

import pytest
import torch
from cases import by_name, far_apart, layouts, photographs, shapes, values

from jair_kernels import fused_tokenlearner
from jair_kernels.testing import Case, assert_accurate, run

OP = "fused_tokenlearner"
ERF = {"approximate": "none"}
ABSENT = [("b1",), ("b2",), ("b1", "b2"), ("norm_bias",), ("norm_weight",), ("norm_weight", "norm_bias")]
OPTIONS = [
    Case(OP, 2, n, 96, 8, h=24, options=o) for o in (ERF, {"eps": 1e-3}, {"eps": 10.0}) for n in (7, 197)
]
PARTS = [Case(OP, 2, 70, 100, 5, h=20, absent=names) for names in ABSENT]
CASES = shapes(OP) + OPTIONS + PARTS + values(OP) + values(OP, **ERF) + layouts(OP)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_accurate(case, target_dtype, expectation):
    expectation(case, target_dtype).check("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_tokens(dtype):
    assert_accurate(Case(OP, 1, 50176, 32, 4, h=16).sample(dtype), "cpu")


def test_a_softmax_has_no_gradient_for_b2(target_dtype):
    gradient = run(Case(OP, 2, 33, 48, 5).sample(target_dtype), "cpu")["db2"]
    assert gradient.shape == (5,)
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("largest", [255, 1])
def test_photographs(largest, dtype):
    assert_accurate(photographs(OP, largest, dtype), "cpu")


@pytest.mark.parametrize("axis", [0, 1], ids=["images", "tokens"])
def test_more_than_2_31_elements_apart(axis):
    near = Case(OP, 2, 3, 32, 4).sample(torch.bfloat16)
    try:
        far = far_apart(near, axis)
    except RuntimeError as error:
        pytest.skip(f"no address space for a tensor of 2^31 elements: {error}")
    ours, theirs = run(far, "cpu"), run(near, "cpu")
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(
    "case", [Case(OP, 2, 5, 9, 3, h=4, mask="some", options=o) for o in ({}, ERF)], ids=by_name
)
def test_gradcheck(case, isa):
    sample = case.sample(torch.float64)
    tensors = {name: t for name, t in sample.tensors.items() if name != "mask"}

    def function(*values):
        named = dict(zip(tensors, values, strict=True))
        return fused_tokenlearner(**named, mask=sample.tensors["mask"], **sample.options, backend="cpu")

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors.values()])


def test_one_token_leaves_nothing_to_learn(target_dtype):
    result = run(Case(OP, 2, 1, 96, 8).sample(target_dtype), "cpu")
    for name in ("dw1", "db1", "dw2", "db2", "dnorm_weight", "dnorm_bias"):
        assert not result[name].any(), name
