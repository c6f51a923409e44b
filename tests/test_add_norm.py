"""add_norm on the CPU against float64: every dtype, instruction set and combination of absent arguments."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from row_samples import (
    ROWS,
    WIDTHS,
    add_norm_arguments,
    add_norm_grad_arguments,
    assert_same,
    check,
    results,
    rows,
    strided,
)
from test_threads import pool_threads
from torch.nn.functional import layer_norm

import jair_kernels.add_norm  # noqa: F401 - registers the ops
from jair_kernels._backends import block
from jair_kernels.add_norm.reference import add_norm_backward, add_norm_forward
from jair_kernels.testing import poisoned_empty

OPS = torch.ops.jair_kernels
AFFINE = "x_weight x_bias weight bias"
# Which of base and update there are, the absent parameters, the size of the gate, and whether y is wanted.
GIVEN = ("", "x_stats", "update", "x_stats update")
PARAMETERS = ("", AFFINE, "x_bias weight", "x_weight bias")
ABSENT = [
    (f"{without} {parameters}{'' if gates else ' gate'}".strip(), gates or None, norm)
    for without, parameters, gates, norm in product(GIVEN, PARAMETERS, (0, 1, 7), (True, False))
    if "update" not in without or gates == 0
]
ABSENT_GRADS = ["", "dz", "weight", "bias", "dz weight", "dz bias", "weight bias", "dz weight bias"]


def forward(*arguments):
    return OPS.add_norm_forward(*arguments)


def backward(*arguments):
    return OPS.add_norm_backward(*arguments)


def check_both(arguments, **options):
    """The forward, and the backward at its z (x itself where nothing is added)."""
    check(forward, add_norm_forward, arguments)
    z = forward(*arguments)[0]
    z = arguments[0].contiguous() if z.dim() == 1 else z
    check(backward, add_norm_backward, add_norm_grad_arguments(z, **options))


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("r", ROWS)
def test_shapes(r, d, target_dtype):
    check_both(add_norm_arguments(r, d, target_dtype))


@pytest.mark.parametrize(("without", "gates", "norm"), ABSENT)
def test_absent_arguments(without, gates, norm, target_dtype):
    arguments = add_norm_arguments(5, 7, target_dtype, without=without, gates=gates, norm=norm)
    check(forward, add_norm_forward, arguments)


@pytest.mark.parametrize("without", ABSENT_GRADS)
def test_absent_arguments_of_the_backward(without, target_dtype):
    check(backward, add_norm_backward, add_norm_grad_arguments(rows(33, 20, target_dtype), without=without))


@pytest.mark.parametrize("without", ["", "x_stats update", "update"])
def test_rows_far_from_zero(without, target_dtype):
    check_both(
        add_norm_arguments(33, 768, target_dtype, x=rows(33, 768, target_dtype, mean=100.0), without=without)
    )


@pytest.mark.parametrize("value", [0.0, 1.1, -300.7])
@pytest.mark.parametrize("d", [7, 768])
def test_constant_rows(d, value, target_dtype):
    x = torch.full((5, d), value, dtype=torch.float64).to(target_dtype)
    arguments = add_norm_arguments(5, d, target_dtype, x=x, without="x_stats update")
    _, y, stats = forward(*arguments)
    assert torch.equal(y, arguments[8].expand(5, d))
    assert torch.equal(stats[:, 0], x[:, 0].to(stats.dtype))
    check(backward, add_norm_backward, add_norm_grad_arguments(x))


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parameters_of_another_dtype(parameters, target_dtype):
    if target_dtype == torch.float64:
        parameters = torch.float64
    check_both(add_norm_arguments(9, 100, target_dtype, parameters=parameters), parameters=parameters)


def test_strided_rows(target_dtype):
    arguments = add_norm_arguments(9, 100, target_dtype)
    spread = tuple(strided(a) if isinstance(a, torch.Tensor) else a for a in arguments)
    assert_same(forward(*spread), forward(*arguments))
    turned = (arguments[0].t().contiguous().t(), *arguments[1:])
    assert_same(forward(*turned), forward(*arguments))
    grads = add_norm_grad_arguments(arguments[0])
    assert_same(backward(*map(strided, grads)), backward(*grads))
    assert_same(backward(grads[0].t().contiguous().t(), *grads[1:]), backward(*grads))
    one_dy = grads[0][:1].expand(9, 100)
    assert_same(backward(one_dy, *grads[1:]), backward(one_dy.contiguous(), *grads[1:]))


def test_more_than_2_31_elements_apart(isa):
    near = add_norm_arguments(3, 32, torch.bfloat16, without="x_stats")
    try:
        room = torch.empty(2 * 2**30 + 64, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"no address space for a tensor of 2^31 elements: {error}")
    far = room.as_strided((3, 32), (2**30, 1))
    far.copy_(near[0])
    assert_same(forward(far, *near[1:]), forward(*near))
    grads = add_norm_grad_arguments(near[0])
    assert_same(backward(*grads[:2], far, *grads[3:]), backward(*grads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows(dtype, isa):
    check(backward, add_norm_backward, add_norm_grad_arguments(rows(20011, 16, dtype, mean=1.0)))


@pytest.mark.parametrize("gate", [0.0, 1e-4, -0.03, 0.6, 0.63, -5.0, 12.0, 200.0, torch.inf])
def test_gates(gate, target_dtype):
    """An update alone shows the factor with all its digits."""
    x, update = torch.zeros(2, 40, dtype=target_dtype), torch.ones(2, 40, dtype=target_dtype)
    value = torch.tensor([gate]).to(target_dtype)
    check(forward, add_norm_forward, (x, None, None, None, update, value, False, None, None, 1e-5))


def test_a_closed_gate_gives_the_base_exactly(target_dtype):
    x, update = rows(9, 40, target_dtype), 1e4 * rows(9, 40, target_dtype, seed=1)
    closed = torch.zeros(1, dtype=target_dtype)
    z, _, _ = forward(x, None, None, None, update, closed, False, None, None, 1e-5)
    assert torch.equal(z, x)


def test_a_row_of_nan_stays_alone(target_dtype):
    x, bad = rows(9, 40, target_dtype), rows(9, 40, target_dtype)
    bad[4] = torch.nan
    for good, spoilt in zip(
        *(forward(*add_norm_arguments(9, 40, target_dtype, x=t)) for t in (x, bad)), strict=True
    ):
        keep = torch.arange(9) != 4
        assert torch.equal(good[keep], spoilt[keep])
        assert spoilt[4].isnan().any()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_two_runs(threads, target_dtype):
    arguments = add_norm_arguments(203, 768, target_dtype)
    grads = add_norm_grad_arguments(arguments[0])
    with pool_threads(threads):
        assert_same(forward(*arguments), forward(*arguments))
        assert_same(backward(*grads), backward(*grads))
        check_both(arguments)


def test_poisoned_memory(target_dtype):
    arguments = add_norm_arguments(9, 100, target_dtype)
    grads = add_norm_grad_arguments(arguments[0])
    clean = forward(*arguments), backward(*grads)
    nan = tuple(torch.full_like(t, torch.nan) for t in grads)
    backward(*nan)  # fills the kernels' own scratch
    with poisoned_empty():
        assert_same(forward(*arguments), clean[0])
        assert_same(backward(*grads), clean[1])


def test_the_reference_is_plain_pytorch():
    arguments = add_norm_arguments(5, 20, torch.float64)
    x, _stats, scale, shift, update, gate, _norm, weight, bias, eps = arguments
    base = layer_norm(x, (20,), scale, shift, eps)
    z, y, _ = add_norm_forward(*arguments)
    torch.testing.assert_close(z, base + gate.tanh() * update)
    torch.testing.assert_close(y, layer_norm(z, (20,), weight, bias, eps))
    dy, dz, z, stats, weight, bias = add_norm_grad_arguments(x)
    leaves = [t.clone().requires_grad_() for t in (z, weight, bias)]
    y = layer_norm(leaves[0], (20,), *leaves[1:], eps)
    expected = torch.autograd.grad([y, leaves[0] * 1], leaves, [dy, dz])
    torch.testing.assert_close(add_norm_backward(dy, dz, z, stats, weight, bias), expected)


@pytest.mark.parametrize("r", [0, 1, 6])
@pytest.mark.parametrize("without", ["", "x_stats update", "x_stats gate weight", "update x_weight bias"])
def test_opcheck(without, r, isa):
    for norm in (True, False):
        arguments = add_norm_arguments(r, 12, torch.bfloat16, without=without, norm=norm)
        torch.library.opcheck(OPS.add_norm_forward.default, arguments)
    grads = add_norm_grad_arguments(arguments[0], without=f"{without} dz" if "gate" in without else without)
    torch.library.opcheck(OPS.add_norm_backward.default, grads)


def test_dynamic_shapes():
    compiled = torch.compile(forward, fullgraph=True, dynamic=True, backend="aot_eager")
    for r in (5, 9, 33):
        arguments = add_norm_arguments(r, 20, torch.float32)
        assert_same(compiled(*arguments), forward(*arguments))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_vmap():
    calls = [add_norm_arguments(3, 20, torch.float32, x=rows(3, 20, torch.float32, seed=s)) for s in (20, 21)]
    x, stats, update = (torch.stack([call[i] for call in calls]) for i in (0, 1, 4))
    rest = calls[0][5:]
    mapped = torch.vmap(lambda x, s, u: forward(x, s, *calls[0][2:4], u, *rest))(x, stats, update)
    for i, call in enumerate(calls):
        assert_same(tuple(t[i] for t in mapped), results(forward, call))


def test_the_block_is_registered():
    assert block("add_norm", "cpu").forward is OPS.add_norm_forward.default
    assert block("add_norm", "triton").backward.operator is OPS.add_norm_backward_triton.default
