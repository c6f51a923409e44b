"""Sums over rows and along them on the CPU against long doubles: dtypes, instruction sets, layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jair_kernels import _sums
from jair_kernels._autograd import accumulate_dtype

OPS = torch.ops.jair_kernels
SIZES = [(0, 5), (5, 0), (1, 1), (3, 17), (33, 64), (130, 1000), (5000, 7)]


def rows(r: int, d: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, d, dtype=torch.float64, generator=generator).to(dtype)


def assert_summed(result: torch.Tensor, axis: int, *factors: torch.Tensor) -> None:
    """The sum of the factors' products, within two spacings of its dtype of the sum of their magnitudes."""
    assert result.dtype == accumulate_dtype(factors[0].dtype)
    terms = np.prod([factor.double().numpy().astype(np.longdouble) for factor in factors], axis=0)
    error = np.abs(result.double().numpy() - terms.sum(axis))
    assert (error <= 2 * torch.finfo(result.dtype).eps * np.abs(terms).sum(axis)).all()


@pytest.mark.parametrize(("r", "d"), SIZES)
def test_column_sum(r, d, target_dtype):
    x = rows(r, d, target_dtype)
    assert_summed(OPS.column_sum(x), 0, x)


@pytest.mark.parametrize(("r", "d"), SIZES)
def test_row_dot(r, d, target_dtype):
    a, b = rows(r, d, target_dtype), rows(r, d, target_dtype, seed=1)
    assert_summed(OPS.row_dot(a, b), 1, a, b)


@pytest.mark.parametrize(
    "slice_of", [lambda x: x[:, 3:20], lambda x: x[::2], lambda x: x.T, lambda x: x[:, ::3]]
)
def test_strided_rows(slice_of, dtype):
    x = slice_of(rows(40, 60, dtype))
    assert_summed(OPS.column_sum(x), 0, x)
    assert_summed(OPS.row_dot(x, x), 1, x, x)


def test_many_equal_rows_lose_nothing():
    x = torch.full((100_000, 3), 0.1)
    assert_summed(OPS.column_sum(x), 0, x)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, dtype):
    a, b = rows(7, 30, dtype), rows(7, 30, dtype, seed=1)
    monkeypatch.setattr(_sums, "_COMPILED", False)
    assert_summed(_sums.column_sum(a), 0, a)
    assert_summed(_sums.row_dot(a, b), 1, a, b)


@pytest.mark.parametrize("name", ["column_sum", "row_dot"])
def test_opcheck(name, dtype):
    arguments = (rows(4, 9, dtype), rows(4, 9, dtype, seed=1))[: 1 if name == "column_sum" else 2]
    torch.library.opcheck(getattr(OPS, name).default, arguments)


def test_vmap(dtype):
    x = rows(12, 9, dtype).view(3, 4, 9)
    assert torch.equal(torch.func.vmap(OPS.column_sum)(x), torch.stack([OPS.column_sum(one) for one in x]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: OPS.column_sum(x[0]), "rows: unexpected shape"),
        (lambda x: OPS.row_dot(x, x[:, :3]), "b: unexpected shape"),
        (lambda x: OPS.row_dot(x, x.double()), "b: unexpected dtype"),
    ],
)
def test_refused(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(4, 9))
