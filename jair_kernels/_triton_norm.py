"""Token rows in Triton: the LayerNorm without scale and shift, its statistics and its backward.

The LayerNorm is applied in float32 and rounded to x's dtype as PyTorch's is: no digits are lost in rows with
|mean| >> std. A masked row is read as 0, so that a NaN in it reaches nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._triton import ceil_div, launch, rows_contiguous
from jair_kernels._triton_pool import mask_arguments
from jair_kernels._triton_rows import row_block

Tensor = torch.Tensor


@triton.jit
def load_tokens(x, mask, row, R, N, d, D, x_b, x_n, m_b, m_n, HAS_MASK: tl.constexpr):
    """Rows of x [B,N,D] in float32, and which of them are kept; 0 where they are not."""
    b, n = row // N, row % N
    keep = row < R
    if HAS_MASK:
        keep = keep & (tl.load(mask + b * m_b + n * m_n, mask=keep, other=0) != 0)
    at = x + (b * x_b + n * x_n)[:, None] + d[None, :]
    return tl.load(at, mask=keep[:, None] & (d < D)[None, :], other=0.0).to(tl.float32), keep


@triton.jit
def normalise_rows(
    block, x, mask, xhat, stats, R, N, D, x_b, x_n, m_b, m_n, eps, KEPT: tl.constexpr, WRITE: tl.constexpr,
    HAS_MASK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A block of rows: their statistics, by way of the first element, or KEPT ones; WRITE: xhat."""
    row = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    v, keep = load_tokens(x, mask, row, R, N, d, D, x_b, x_n, m_b, m_n, HAS_MASK)
    if KEPT:
        mean = tl.load(stats + 2 * row, mask=row < R, other=0.0)
        rstd = tl.load(stats + 2 * row + 1, mask=row < R, other=0.0)
    else:
        first = tl.sum(tl.where((d == 0)[None, :], v, 0.0), 1)
        near = tl.where((d < D)[None, :], v - first[:, None], 0.0)
        mean = first + tl.sum(near, 1) / D
        centred = tl.where((d < D)[None, :], v - mean[:, None], 0.0)
        rstd = (1 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)).to(tl.float32)  # eps may be wider
        rstd = tl.where(keep, rstd, 0.0)
        tl.store(stats + 2 * row, mean, mask=row < R)
        tl.store(stats + 2 * row + 1, rstd, mask=row < R)
    if WRITE:
        v = (v - mean[:, None]) * rstd[:, None]
        at = xhat + row[:, None] * D + d[None, :]
        tl.store(at, v.to(xhat.dtype.element_ty), mask=(row < R)[:, None] & (d < D)[None, :])


@triton.jit
def normalise_kernel(
    x, mask, xhat, stats, R, N, D, x_b, x_n, m_b, m_n, eps, KEPT: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """xhat of a block of rows."""
    normalise_rows(
        tl.program_id(0), x, mask, xhat, stats, R, N, D, x_b, x_n, m_b, m_n, eps, KEPT, True, HAS_MASK,
        BLOCK_R, BLOCK_D,
    )  # fmt: skip


@triton.jit
def gradient_kernel(
    g, x, mask, stats, dx, R, N, D, x_b, x_n, m_b, m_n, HAS_MASK: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx = rstd (g - mean(g) - xhat mean(g xhat)) of a block of rows; dx may be g."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    at, inside = row[:, None] * D + d[None, :], (row < R)[:, None] & (d < D)[None, :]
    v, _keep = load_tokens(x, mask, row, R, N, d, D, x_b, x_n, m_b, m_n, HAS_MASK)
    mean = tl.load(stats + 2 * row, mask=row < R, other=0.0)
    rstd = tl.load(stats + 2 * row + 1, mask=row < R, other=0.0)
    v = (v - mean[:, None]) * rstd[:, None]
    gradient = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    constant, along = tl.sum(gradient, 1) / D, tl.sum(gradient * v, 1) / D
    gradient = rstd[:, None] * (gradient - constant[:, None] - v * along[:, None])
    tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)


def normalised(x: Tensor, mask: Tensor | None, eps: float, stats: Tensor | None) -> tuple[Tensor, Tensor]:
    """(xhat, mean and 1/std [B,N,2] of its rows in float32), from `stats` where these are given."""
    b, n, d = x.shape
    x, xhat = rows_contiguous(x), x.new_empty((b, n, d))
    kept = stats is not None
    found = x.new_empty((b, n, 2), dtype=torch.float32) if stats is None else stats.contiguous()
    mask_or_x, *mask_strides = mask_arguments(mask, x)
    block = row_block(d)
    launch(
        normalise_kernel, (ceil_div(b * n, block["BLOCK_R"]),), x, x, mask_or_x, xhat, found, b * n, n, d,
        *x.stride()[:2], *mask_strides, eps, KEPT=kept, HAS_MASK=mask is not None, **block,
    )  # fmt: skip
    return xhat, found


def through_norm(g: Tensor, x: Tensor, mask: Tensor | None, stats: Tensor) -> None:
    """The gradient that reaches x, from that of xhat and in its place."""
    (b, n, d), x = x.shape, rows_contiguous(x)
    mask_or_x, *mask_strides = mask_arguments(mask, x)
    block = row_block(d)
    launch(
        gradient_kernel, (ceil_div(b * n, block["BLOCK_R"]),), x, g, x, mask_or_x, stats.contiguous(), g,
        b * n, n, d, *x.stride()[:2], *mask_strides, HAS_MASK=mask is not None, **block,
    )  # fmt: skip
