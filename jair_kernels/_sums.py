"""Sums over rows and along them, in the dtype that kernels accumulate in: gradients of biases and gates.

On the CPU PyTorch first makes a float32 copy of bfloat16 rows, as large as a weight, in pages that are new at
every call; the library's own operators read the rows as they are.
"""

from __future__ import annotations

import torch

from jair_kernels import _library, _vmap
from jair_kernels._autograd import accumulate_dtype

Tensor = torch.Tensor


def column_sum(rows: Tensor) -> Tensor:
    """[R,D] to [D], the sum over rows."""
    if rows.device.type == "cpu" and _COMPILED:
        return torch.ops.jair_kernels.column_sum(rows)  # type: ignore[no-any-return]
    return rows.sum(0, dtype=accumulate_dtype(rows.dtype))


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """[R,D] and [R,D] to [R], the dot product of each row with its counterpart."""
    if a.device.type == "cpu" and _COMPILED:
        return torch.ops.jair_kernels.row_dot(a, b)  # type: ignore[no-any-return]
    dtype = accumulate_dtype(a.dtype)
    return (a.to(dtype) * b.to(dtype)).sum(1)


def _fake_column_sum(rows: Tensor) -> Tensor:
    return rows.new_empty((rows.shape[1],), dtype=accumulate_dtype(rows.dtype))


def _fake_row_dot(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0],), dtype=accumulate_dtype(a.dtype))


_COMPILED = all(_library.has_operator(name, "CPU") for name in ("column_sum", "row_dot"))
if _COMPILED:
    for _name, _fake in (("column_sum", _fake_column_sum), ("row_dot", _fake_row_dot)):
        torch.library.register_fake(f"jair_kernels::{_name}", _fake)
        _vmap.register_rule(_name)
