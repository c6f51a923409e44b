"""The Triton kernels of the building block query_pool in triton's interpreter, against float64."""

from __future__ import annotations

import pytest
import torch
from interpreter import interpreted, outside, repaired, run_interpreted  # noqa: F401 - a fixture
from query_pools import EPS, Call, Expectation, run

from jair_kernels import _backends
from jair_kernels.query_pool import op  # noqa: F401 - registers the block
from jair_kernels.testing import poisoned_empty

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CALLS = [
    Call(2, 1, 48, 8),
    Call(2, 1, 16, 1, norm=False, shared=False),
    Call(2, 7, 40, 111, norm=False, mask="some"),
    Call(2, 33, 48, 20, mask="empty"),
    Call(2, 33, 100, 17, norm=False, shared=False, mask="empty"),
    Call(1, 20, 48, 130, shared=False),
    Call(3, 7, 48, 8, mask="all"),
]


@outside
def test_in_the_interpreter() -> None:
    assert run_interpreted(__file__) >= 35


def kernel() -> _backends.Kernel:
    return _backends.block("query_pool", "triton")


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_accurate(call: Call, dtype: torch.dtype) -> None:
    Expectation.of(call, dtype).check(kernel())


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("values", "norm"), [("shifted", True), ("huge", True), ("shifted", False)])
def test_values(values: str, norm: bool, dtype: torch.dtype) -> None:
    Expectation.of(Call(1, 70, 48, 8, norm=norm, values=values), dtype).check(kernel())


@interpreted
@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_strided_tokens(layout: str) -> None:
    call = Call(2, 17, 48, 20, layout=layout)
    tensors = call.tensors(torch.float32)
    packed = run(kernel(), call, {**tensors, "x": tensors["x"].contiguous()})
    for name, value in run(kernel(), call, tensors).items():
        assert torch.equal(value, packed[name]), name


@interpreted
@pytest.mark.parametrize("norm", [False, True])
def test_masked_nan_and_poisoned_memory(norm: bool) -> None:
    call = Call(2, 40, 48, 20, norm=norm, mask="empty")
    tensors = call.tensors(torch.float32)
    clean = run(kernel(), call, tensors)
    x = tensors["x"].masked_fill(~tensors["mask"].unsqueeze(-1), torch.nan)
    with poisoned_empty():
        dirty = run(kernel(), call, {**tensors, "x": x})
    for name, value in dirty.items():
        assert torch.equal(value, clean[name]), name
    assert not clean["y"][0].any()
    assert (clean["softmax"][0] == 0).all()
    assert not clean["dx"][~tensors["mask"]].any()


@interpreted
def test_one_token_is_itself() -> None:
    call = Call(2, 1, 48, 8, norm=False)
    tensors = call.tensors(torch.float32)
    result = run(kernel(), call, tensors)
    assert torch.equal(result["y"], tensors["x"].expand(2, 8, 48))
    assert not result["dqueries"].any()


@interpreted
@pytest.mark.parametrize("shared", [False, True])
def test_no_images(shared: bool) -> None:
    call = Call(0, 7, 48, 8, shared=shared)
    result = run(kernel(), call, call.tensors(torch.float32))
    assert result["y"].shape == (0, 8, 48)
    assert result["dx"].shape == (0, 7, 48)
    assert result["stats"].shape == (0, 7, 2)
    assert result["dqueries"].shape == (int(shared), 8, 48)
    assert not result["dqueries"].any()


@interpreted
def test_statistics_are_those_of_every_token() -> None:
    call = Call(2, 9, 48, 8, mask="some")
    tensors = call.tensors(torch.float32)
    x = tensors["x"].double()
    exact = torch.stack([x.mean(-1), (x.var(-1, correction=0) + EPS).rsqrt()], -1)
    exact = exact.masked_fill(~tensors["mask"].unsqueeze(-1), 0)
    assert (run(kernel(), call, tensors)["stats"] - exact).abs().max() < 1e-6
