"""gelu in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._triton import ceil_div, launch, padded, rows_contiguous, symbolic
from jair_kernels._triton_mlp import gelu, gelu_slope
from jair_kernels._triton_rows import (
    add_ranges,
    load_rows,
    split_rows,
    store_rows,
)

Tensor = torch.Tensor


@triton.jit
def precise_slope(h, TANH: tl.constexpr):
    """The derivative of GELU with 1 - gate as e gate, which loses no digits beside saturation.

    The score MLP's kernels have no register left for e; here nothing else is live.
    """
    if TANH:
        e = tl.minimum(tl.exp(-1.5957691216057308 * h * (1 + 0.044715 * h * h)), 1e38)
        gate = 1 / (1 + e)
        return gate * (1 + e * gate * h * 1.5957691216057308 * (1 + 0.134145 * h * h))
    return gelu_slope(h, False)


@triton.jit
def forward_kernel(
    h, g, R, M, h_r, TANH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One block of rows and columns."""
    chunks = tl.cdiv(M, BLOCK_M)
    row = (tl.program_id(0) // chunks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    m = (tl.program_id(0) % chunks) * BLOCK_M + tl.arange(0, BLOCK_M)
    store_rows(g, gelu(load_rows(h, row, h_r, R, m, M), TANH), row, R, m, M)


@triton.jit
def backward_kernel(
    dg, h, dh, g, parts, R, M, dg_r, h_r, blocks, SUMS: tl.constexpr, TANH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One range of rows, one block of columns; the sums of dh become a row of parts."""
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    begin = tl.program_id(0).to(tl.int64) * blocks * BLOCK_R
    total = tl.zeros([BLOCK_R, BLOCK_M], tl.float32)
    for i in range(blocks):
        row = begin + i * BLOCK_R + tl.arange(0, BLOCK_R)
        v = load_rows(h, row, h_r, R, m, M)
        gradient = load_rows(dg, row, dg_r, R, m, M) * precise_slope(v, TANH)
        store_rows(g, gelu(v, TANH), row, R, m, M)
        store_rows(dh, gradient, row, R, m, M)
        total += gradient
    if SUMS:
        to = parts + tl.program_id(0).to(tl.int64) * M + m
        tl.store(to, tl.sum(total, 0), mask=m < M)


def forward(h: Tensor, tanh: bool) -> Tensor:
    """The op's forward."""
    r, m = h.shape
    g = h.new_empty((r, m))
    if not symbolic(r) and r == 0:
        return g
    h, block = rows_contiguous(h), _block(m, 512)
    grid = (ceil_div(r, block["BLOCK_R"]) * ceil_div(m, block["BLOCK_M"]),)
    launch(forward_kernel, grid, h, h, g, r, m, h.stride(0), TANH=tanh, **block)
    return g


def backward(dg: Tensor, h: Tensor, tanh: bool, sums: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The op's backward: dh, g, and the sums of dh over rows in float32."""
    r, m = h.shape
    dh, g = h.new_empty((r, m)), h.new_empty((r, m))
    total = h.new_empty((m if sums else 0,), dtype=torch.float32)
    if not symbolic(r) and r == 0:
        return dh, g, total.zero_()
    dg, h, block = rows_contiguous(dg), rows_contiguous(h), _block(m, 256)
    columns = ceil_div(m, block["BLOCK_M"])
    splits, blocks = split_rows(r, block["BLOCK_R"], columns)
    parts = h.new_empty((splits, 1, m), dtype=torch.float32)
    launch(
        backward_kernel, (splits, columns), h, dg, h, dh, g, parts, r, m, dg.stride(0), h.stride(0),
        blocks, SUMS=sums, TANH=tanh, **block,
    )  # fmt: skip
    if sums:
        add_ranges(parts, total)
    return dh, g, total


def _block(width: int, columns: int) -> dict[str, int]:
    """At most so many columns, 16 elements a thread."""
    columns = padded(width, at_most=columns)
    return {"BLOCK_R": 2048 // columns, "BLOCK_M": columns, "num_warps": 4}
