"""gelu on the CPU against float64: every dtype and instruction set, both forms of GELU."""

from __future__ import annotations

import pytest
import torch
from row_samples import ROWS, WIDTHS, assert_same, check, gelu_arguments, rows, strided
from test_threads import pool_threads
from torch.nn.functional import gelu

import jair_kernels.gelu  # noqa: F401 - registers the ops
from jair_kernels._backends import block
from jair_kernels.gelu.reference import gelu_backward, gelu_forward
from jair_kernels.testing import poisoned_empty

OPS = torch.ops.jair_kernels
both_forms = pytest.mark.parametrize("tanh", [True, False], ids=["tanh", "erf"])


def forward(*arguments):
    return OPS.gelu_forward(*arguments)


def backward(*arguments):
    return OPS.gelu_backward(*arguments)


def check_both(arguments, tanh):
    check(forward, gelu_forward, (*arguments[1:], tanh))
    check(backward, gelu_backward, (*arguments, tanh, True))


@both_forms
@pytest.mark.parametrize("m", WIDTHS)
@pytest.mark.parametrize("r", ROWS)
def test_shapes(r, m, tanh, target_dtype):
    check_both(gelu_arguments(r, m, target_dtype), tanh)


@both_forms
def test_without_sums(tanh, target_dtype):
    check(backward, gelu_backward, (*gelu_arguments(9, 100, target_dtype), tanh, False))


@both_forms
def test_the_whole_range(tanh, target_dtype):
    h = torch.linspace(-60, 60, 12001, dtype=torch.float64).to(target_dtype).view(1, -1)
    check_both((torch.ones_like(h), h), tanh)


@both_forms
def test_huge_and_not_finite(tanh, target_dtype):
    h = torch.tensor([[-torch.inf, -6e4, 0.0, 6e4, torch.inf, torch.nan]]).to(target_dtype)
    g = forward(h, tanh)[0].double()
    dh = backward(torch.ones_like(h), h, tanh, True)[0][0].double()
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
        assert_same(backward(*spread, tanh, True), backward(*arguments, tanh, True))


def test_more_than_2_31_elements_apart(isa):
    dg, h = gelu_arguments(3, 32, torch.bfloat16)
    try:
        room = torch.empty(2 * 2**30 + 64, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for a tensor of 2^31 elements: {error}")
    far = room.as_strided((3, 32), (2**30, 1))
    far.copy_(h)
    assert torch.equal(forward(far, True), forward(h, True))
    assert_same(backward(dg, far, True, True), backward(dg, h, True, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows(dtype, isa):
    check(backward, gelu_backward, (*gelu_arguments(20011, 16, dtype), True, True))


@both_forms
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_two_runs(threads, tanh, target_dtype):
    arguments = gelu_arguments(203, 200, target_dtype)
    with pool_threads(threads):
        assert torch.equal(forward(*arguments[1:], tanh), forward(*arguments[1:], tanh))
        assert_same(backward(*arguments, tanh, True), backward(*arguments, tanh, True))
        check_both(arguments, tanh)


@both_forms
def test_the_backward_repeats_the_forward(tanh, target_dtype):
    arguments = gelu_arguments(9, 100, target_dtype)
    assert torch.equal(backward(*arguments, tanh, True)[1], forward(*arguments[1:], tanh))


def test_poisoned_memory(target_dtype):
    arguments = (*gelu_arguments(9, 100, target_dtype), True)
    clean = forward(*arguments[1:]), backward(*arguments, True)
    junk = (torch.full_like(t, torch.nan) for t in arguments[:2])
    backward(*junk, True, True)  # fills the kernels' own scratch
    with poisoned_empty():
        assert torch.equal(forward(*arguments[1:]), clean[0])
        assert_same(backward(*arguments, True), clean[1])


@both_forms
def test_the_reference_is_plain_pytorch(tanh):
    dg, h = gelu_arguments(5, 20, torch.float64)
    leaves = [h.clone().requires_grad_(), torch.zeros(20, dtype=torch.float64, requires_grad=True)]
    g = gelu(leaves[0] + leaves[1], approximate="tanh" if tanh else "none")
    dh, dbias = torch.autograd.grad(g, leaves, dg)
    torch.testing.assert_close(gelu_forward(h, tanh), g.detach())
    torch.testing.assert_close(gelu_backward(dg, h, tanh, True), (dh, g.detach(), dbias))


@pytest.mark.parametrize("r", [0, 1, 6])
@pytest.mark.parametrize("sums", [True, False])
def test_opcheck(sums, r, isa):
    arguments = (*gelu_arguments(r, 12, torch.bfloat16), True)
    torch.library.opcheck(OPS.gelu_forward.default, arguments[1:])
    torch.library.opcheck(OPS.gelu_backward.default, (*arguments, sums))


def test_dynamic_shapes():
    compiled = torch.compile(backward, fullgraph=True, dynamic=True, backend="aot_eager")
    for r in (5, 9, 33):
        arguments = (*gelu_arguments(r, 20, torch.float32), True, True)
        assert_same(compiled(*arguments), backward(*arguments))


def test_vmap():
    h = torch.stack([rows(3, 20, torch.float32, seed=s) for s in (1, 2)])
    mapped = torch.vmap(lambda h: forward(h, True))(h)
    dg, each = h.flip(0), [backward(b, a, True, True) for a, b in zip(h, h.flip(0), strict=True)]
    grads = torch.vmap(lambda dg, h: backward(dg, h, True, True))(dg, h)
    for i in range(2):
        assert torch.equal(mapped[i], forward(h[i], True))
        assert_same(tuple(g[i] for g in grads), each[i])


def test_the_block_is_registered():
    assert block("gelu", "cpu").forward is OPS.gelu_forward.default
    assert block("gelu", "triton").backward.operator is OPS.gelu_backward_triton.default
