"""Rows and sums over rows in Triton: what add_norm and gelu share.

Each program of a backward sums a range of rows; the ranges are then added in their order, without atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import ceil_div, launch, padded, symbolic

Tensor = torch.Tensor

# Programs that fill a large GPU four times; a fixed number, so that results do not depend on the GPU at hand.
_PROGRAMS = 528


@triton.jit
def load_parameter(parameter, d, D, absent, HAS: tl.constexpr):
    """Columns d of a parameter [D] in float32, or `absent` where there is none."""
    if HAS:
        value = tl.load(parameter + d, mask=d < D, other=0.0).to(tl.float32)
    else:
        value = tl.full(d.shape, absent, tl.float32)
    return value


@triton.jit
def load_rows(rows, row, stride, R, d, D):
    """A block of rows in float32, 0 outside."""
    inside = (row < R)[:, None] & (d < D)[None, :]
    return tl.load(rows + row[:, None] * stride + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_rows(rows, value, row, R, d, D):
    """The same back into contiguous rows."""
    inside = (row < R)[:, None] & (d < D)[None, :]
    tl.store(rows + row[:, None] * D + d[None, :], value.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def row_sum_kernel(
    parts, first, second, splits, stride, D, HAS_FIRST: tl.constexpr, HAS_SECOND: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """first and second [D] from the sums of all ranges, `stride` apart."""
    d, s = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    sums, others = tl.zeros([BLOCK_S, BLOCK_D], tl.float32), tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    for s0 in range(0, splits, BLOCK_S):
        if HAS_FIRST:
            sums += load_rows(parts, s0 + s, stride, splits, d, D)
        if HAS_SECOND:
            others += load_rows(parts + D, s0 + s, stride, splits, d, D)
    if HAS_FIRST:
        tl.store(first + d, tl.sum(sums, 0).to(first.dtype.element_ty), mask=d < D)
    if HAS_SECOND:
        tl.store(second + d, tl.sum(others, 0).to(second.dtype.element_ty), mask=d < D)


def row_block(width: int) -> dict[str, int]:
    """The block of a program that keeps whole rows in registers, 16 elements a thread."""
    columns = padded(width)
    rows = max(1, 2048 // columns)
    return {"BLOCK_R": rows, "BLOCK_D": columns, "num_warps": min(16, rows * columns // 512)}


def split_rows(rows: Any, block: int, columns: Any = 1) -> tuple[Any, Any]:
    """(ranges of rows, blocks in a range) where `columns` programs share each range."""
    blocks, splits = ceil_div(rows, block), max(1, _PROGRAMS // columns)
    if not symbolic(rows):
        splits = min(splits, blocks)
    return splits, ceil_div(blocks, splits)


def add_ranges(parts: Tensor, first: Tensor | None, second: Tensor | None = None) -> None:
    """first and second [D], where they are wanted, from the sums parts [ranges, 1 or 2, D]."""
    splits, _, d = parts.shape
    launch(
        row_sum_kernel, (ceil_div(d, 32),), parts, parts, parts if first is None else first,
        parts if second is None else second, splits, parts.stride(0), d, HAS_FIRST=first is not None,
        HAS_SECOND=second is not None, BLOCK_S=64, BLOCK_D=32, num_warps=4,
    )  # fmt: skip


def new_gradient(parameter: Tensor | None, x: Tensor) -> Tensor:
    """Memory for a parameter's gradient; that of an absent one is empty."""
    if parameter is None:
        return x.new_empty((0,), dtype=torch.float32)
    return torch.empty_like(parameter, memory_format=torch.contiguous_format)
