"""The Triton kernels of add_norm and gelu in triton's interpreter, against float64 references."""

from __future__ import annotations

import pytest
import torch
from interpreter import interpreted, outside, repaired, run_interpreted  # noqa: F401 - a fixture
from row_samples import (
    add_norm_arguments,
    add_norm_grad_arguments,
    assert_same,
    check,
    gelu_arguments,
    rows,
    strided,
)

import jair_kernels.add_norm
import jair_kernels.gelu  # noqa: F401 - registers the ops
from jair_kernels import _triton_rows
from jair_kernels.add_norm.reference import add_norm_backward, add_norm_forward
from jair_kernels.gelu.reference import gelu_backward, gelu_forward
from jair_kernels.testing import poisoned_empty

OPS = torch.ops.jair_kernels
FORWARD, BACKWARD = OPS.add_norm_forward_triton.default, OPS.add_norm_backward_triton.default
GELU, GELU_BACKWARD = OPS.gelu_forward_triton.default, OPS.gelu_backward_triton.default

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
both_forms = pytest.mark.parametrize("tanh", [True, False], ids=["tanh", "erf"])
ABSENT = [  # absent arguments, size of the gate, whether y is wanted
    ("", 1, True),
    ("", 20, False),
    ("gate x_bias weight", None, True),
    ("update x_weight bias", None, True),
    ("update", None, False),
    ("x_stats", 20, True),
    ("x_stats gate weight bias", None, True),
    ("x_stats update", None, True),
    ("x_stats update", None, False),
]


@outside
def test_in_the_interpreter() -> None:
    assert run_interpreted(__file__) >= 60


def check_both(dtype, r, d, **options):
    arguments = add_norm_arguments(r, d, dtype, **options)
    check(FORWARD, add_norm_forward, arguments)
    parameters = {"parameters": options["parameters"]} if "parameters" in options else {}
    check(BACKWARD, add_norm_backward, add_norm_grad_arguments(arguments[0], **parameters))


@interpreted
@every_dtype
@pytest.mark.parametrize(("r", "d"), [(0, 20), (1, 1), (33, 7), (3, 768), (3, 1000), (1, 2100)])
def test_add_norm(r, d, dtype):
    check_both(dtype, r, d)


@interpreted
@every_dtype
@pytest.mark.parametrize(("without", "gates", "norm"), ABSENT)
def test_absent_arguments(without, gates, norm, dtype):
    check(
        FORWARD, add_norm_forward, add_norm_arguments(5, 20, dtype, without=without, gates=gates, norm=norm)
    )


@interpreted
@pytest.mark.parametrize("without", ["dz", "weight", "bias", "dz weight bias"])
def test_absent_arguments_of_the_backward(without):
    check(BACKWARD, add_norm_backward, add_norm_grad_arguments(rows(7, 20, torch.float32), without=without))


@interpreted
@every_dtype
def test_rows_far_from_zero(dtype):
    x = rows(5, 768, dtype, mean=100.0)
    check_both(dtype, 5, 768, x=x, without="x_stats update")
    check_both(dtype, 5, 768, x=x)


@interpreted
@every_dtype
def test_constant_rows(dtype):
    x = torch.full((3, 768), 1.1).to(dtype)
    arguments = add_norm_arguments(3, 768, dtype, x=x, without="x_stats update")
    _, y, stats = FORWARD(*arguments)
    assert torch.equal(y, arguments[8].expand(3, 768))
    assert torch.equal(stats[:, 0], x[:, 0].float())
    check(BACKWARD, add_norm_backward, add_norm_grad_arguments(x))


@interpreted
def test_parameters_of_another_dtype():
    for dtype, parameters in ((torch.bfloat16, torch.float32), (torch.float32, torch.float16)):
        check_both(dtype, 5, 20, parameters=parameters)


@interpreted
@pytest.mark.parametrize("gate", [0.0, 1e-4, -0.03, 0.6, 0.63, -5.0, 200.0])
def test_gates(gate):
    x, update, value = torch.zeros(2, 16), torch.ones(2, 16), torch.tensor([gate])
    check(FORWARD, add_norm_forward, (x, None, None, None, update, value, False, None, None, 1e-5))


@interpreted
@both_forms
@every_dtype
@pytest.mark.parametrize(
    ("r", "m", "sums"), [(0, 20, True), (1, 1, True), (33, 7, False), (5, 768, True), (3, 1000, True)]
)
def test_gelu(r, m, sums, dtype, tanh):
    arguments = (*gelu_arguments(r, m, dtype), tanh)
    check(GELU, gelu_forward, arguments[1:])
    check(GELU_BACKWARD, gelu_backward, (*arguments, sums))


@interpreted
def test_many_rows(monkeypatch):
    """More ranges than one step of the last sum takes, several blocks in a range, some ranges empty."""
    monkeypatch.setattr(_triton_rows, "_PROGRAMS", 66)
    check(BACKWARD, add_norm_backward, add_norm_grad_arguments(rows(270, 1000, torch.float32)))
    check(GELU_BACKWARD, gelu_backward, (*gelu_arguments(4401, 20, torch.float32), True, True))


@interpreted
def test_strided_rows_and_poisoned_memory():
    grads, gelu = add_norm_grad_arguments(rows(9, 20, torch.float32)), gelu_arguments(9, 20, torch.float32)
    arguments = add_norm_arguments(9, 20, torch.float32)
    spread = tuple(strided(a) if isinstance(a, torch.Tensor) else a for a in arguments)
    for run, dense, wide in (
        (FORWARD, arguments, spread),
        (BACKWARD, grads, tuple(map(strided, grads))),
        (GELU_BACKWARD, (*gelu, True, True), (*map(strided, gelu), True, True)),
        (GELU_BACKWARD, (*gelu, True, True), (gelu[0].t().contiguous().t(), *gelu[1:], True, True)),
    ):
        expected = run(*dense)
        assert_same(run(*dense), expected)
        with poisoned_empty():
            assert_same(run(*wide), expected)


@interpreted
def test_opcheck():
    for r in (0, 1, 5):
        arguments = add_norm_arguments(r, 12, torch.float32, without="x_weight gate")
        torch.library.opcheck(FORWARD, arguments)
        torch.library.opcheck(FORWARD, add_norm_arguments(r, 12, torch.float32, without="x_stats update"))
        torch.library.opcheck(BACKWARD, add_norm_grad_arguments(arguments[0], without="bias"))
        gelu = (*gelu_arguments(r, 12, torch.float32), True)
        torch.library.opcheck(GELU, gelu[1:])
        torch.library.opcheck(GELU_BACKWARD, (*gelu, True))


def test_the_schemas_are_those_of_the_library():
    for name in ("add_norm_forward", "add_norm_backward", "gelu_forward", "gelu_backward"):
        one, other = (getattr(OPS, n).default._schema for n in (name, f"{name}_triton"))
        assert [(a.name, str(a.type)) for a in one.arguments] == [
            (a.name, str(a.type)) for a in other.arguments
        ]
        assert [str(r.type) for r in one.returns] == [str(r.type) for r in other.returns]
