"""bias_gelu on the CPU against float64: every dtype and instruction set, both forms of GELU."""

from __future__ import annotations

import pytest
import torch
from row_samples import ROWS, WIDTHS, assert_same, check, gelu_arguments, rows, strided
from test_threads import pool_threads
from torch.nn.functional import gelu

import jair_kernels.bias_gelu  # noqa: F401 - registers the ops
from jair_kernels._backends import block
from jair_kernels.bias_gelu.reference import bias_gelu_backward, bias_gelu_forward
from jair_kernels.testing import poisoned_empty

OPS = torch.ops.jair_kernels
both_forms = pytest.mark.parametrize("tanh", [True, False], ids=["tanh", "erf"])


def forward(*arguments):
    return OPS.bias_gelu_forward(*arguments)


def backward(*arguments):
    return OPS.bias_gelu_backward(*arguments)


def check_both(arguments, tanh):
    check(forward, bias_gelu_forward, (*arguments[1:], tanh))
    check(backward, bias_gelu_backward, (*arguments, tanh))


@both_forms
@pytest.mark.parametrize("m", WIDTHS)
@pytest.mark.parametrize("r", ROWS)
def test_shapes(r, m, tanh, target_dtype):
    check_both(gelu_arguments(r, m, target_dtype), tanh)


@both_forms
def test_without_a_bias(tanh, target_dtype):
    check_both(gelu_arguments(9, 100, target_dtype, bias=False), tanh)


@both_forms
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_bias_of_another_dtype(parameters, tanh, target_dtype):
    if target_dtype == torch.float64:
        parameters = torch.float64
    check_both(gelu_arguments(9, 100, target_dtype, parameters=parameters), tanh)


@both_forms
def test_the_whole_range(tanh, target_dtype):
    h = torch.linspace(-60, 60, 12001, dtype=torch.float64).to(target_dtype).view(1, -1)
    check_both((torch.ones_like(h), h, None), tanh)


@both_forms
def test_huge_and_not_finite(tanh, target_dtype):
    h = torch.tensor([[-torch.inf, -6e4, 0.0, 6e4, torch.inf, torch.nan]]).to(target_dtype)
    g = forward(h, None, tanh)[0].double()
    dh = backward(torch.ones_like(h), h, None, tanh)[0][0].double()
    near = {"rtol": 0, "atol": 1e-30}
    torch.testing.assert_close(g[1:5], h[0, 1:5].double().clamp(min=0), **near)
    torch.testing.assert_close(dh[1:4], torch.tensor([0, 0.5, 1]).double(), **near)
    assert g[5].isnan()
    assert dh[5].isnan()


@both_forms
def test_strided_rows(tanh, target_dtype):
    arguments = gelu_arguments(9, 100, target_dtype)
    for change in (strided, lambda t: t.t().contiguous().t() if t.dim() == 2 else t):
        spread = tuple(map(change, arguments))
        assert torch.equal(forward(*spread[1:], tanh), forward(*arguments[1:], tanh))
        assert_same(backward(*spread, tanh), backward(*arguments, tanh))


def test_more_than_2_31_elements_apart(isa):
    dg, h, bias = gelu_arguments(3, 32, torch.bfloat16)
    try:
        room = torch.empty(2 * 2**30 + 64, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for a tensor of 2^31 elements: {error}")
    far = room.as_strided((3, 32), (2**30, 1))
    far.copy_(h)
    assert torch.equal(forward(far, bias, True), forward(h, bias, True))
    assert_same(backward(dg, far, bias, True), backward(dg, h, bias, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows(dtype, isa):
    check(backward, bias_gelu_backward, (*gelu_arguments(20011, 16, dtype), True))


@both_forms
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_two_runs(threads, tanh, target_dtype):
    arguments = gelu_arguments(203, 200, target_dtype)
    with pool_threads(threads):
        assert torch.equal(forward(*arguments[1:], tanh), forward(*arguments[1:], tanh))
        assert_same(backward(*arguments, tanh), backward(*arguments, tanh))
        check_both(arguments, tanh)


@both_forms
def test_the_backward_repeats_the_forward(tanh, target_dtype):
    arguments = gelu_arguments(9, 100, target_dtype)
    assert torch.equal(backward(*arguments, tanh)[1], forward(*arguments[1:], tanh))


def test_poisoned_memory(target_dtype):
    arguments = (*gelu_arguments(9, 100, target_dtype), True)
    clean = forward(*arguments[1:]), backward(*arguments)
    backward(*(torch.full_like(t, torch.nan) for t in arguments[:3]), True)  # fills the kernels' own scratch
    with poisoned_empty():
        assert torch.equal(forward(*arguments[1:]), clean[0])
        assert_same(backward(*arguments), clean[1])


@both_forms
def test_the_reference_is_plain_pytorch(tanh):
    dg, h, bias = gelu_arguments(5, 20, torch.float64)
    leaves = [t.clone().requires_grad_() for t in (h, bias)]
    g = gelu(leaves[0] + leaves[1], approximate="tanh" if tanh else "none")
    dh, dbias = torch.autograd.grad(g, leaves, dg)
    torch.testing.assert_close(bias_gelu_forward(h, bias, tanh), g.detach())
    torch.testing.assert_close(bias_gelu_backward(dg, h, bias, tanh), (dh, g.detach(), dbias))


@pytest.mark.parametrize("r", [0, 1, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias, r, isa):
    arguments = (*gelu_arguments(r, 12, torch.bfloat16, bias=bias), True)
    torch.library.opcheck(OPS.bias_gelu_forward.default, arguments[1:])
    torch.library.opcheck(OPS.bias_gelu_backward.default, arguments)


def test_dynamic_shapes():
    compiled = torch.compile(backward, fullgraph=True, dynamic=True, backend="aot_eager")
    for r in (5, 9, 33):
        arguments = (*gelu_arguments(r, 20, torch.float32), True)
        assert_same(compiled(*arguments), backward(*arguments))


def test_vmap():
    h, bias = torch.stack([rows(3, 20, torch.float32, seed=s) for s in (1, 2)]), rows(1, 20, torch.float32)[0]
    shared = torch.vmap(lambda h: forward(h, bias, True))(h)
    each = torch.vmap(lambda h, b: forward(h, b, True))(h, torch.stack([bias, -bias]))
    for i, b in enumerate((bias, -bias)):
        assert torch.equal(shared[i], forward(h[i], bias, True))
        assert torch.equal(each[i], forward(h[i], b, True))


def test_the_block_is_registered():
    assert block("bias_gelu", "cpu").forward is OPS.bias_gelu_forward.default
    assert block("bias_gelu", "triton").backward is OPS.bias_gelu_backward_triton.default
