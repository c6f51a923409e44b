"""Token rows and their products with queries in Triton: what both directions of query_pool read.

The LayerNorm is applied to tokens as they are read, in float32, and rounded to x's dtype as PyTorch's is: no
digits are lost in rows with |mean| >> std, and nothing is left to correct for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._triton import ceil_div, launch, padded, symbolic
from jair_kernels._triton_pool import mask_arguments, tokens_kept

Tensor = torch.Tensor

MAX_CHUNK = 128  # queries that one program takes


@triton.jit
def statistics_kernel(
    x, mask, stats, N, D, x_b, x_n, m_b, m_n, eps, HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Mean and 1/std of a block of tokens, by way of their first elements; 0 where they are masked."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    x_rows = x + b * x_b + n * x_n
    first = tl.load(x_rows, mask=keep, other=0.0).to(tl.float32)
    total, square = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        inside = keep[:, None] & (d < D)[None, :]
        part = tl.load(x_rows[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(inside, part - first[:, None], 0.0), 1)
    mean = first + total / D
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        inside = keep[:, None] & (d < D)[None, :]
        part = tl.load(x_rows[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
        part = tl.where(inside, part - mean[:, None], 0.0)
        square += tl.sum(part * part, 1)
    to = stats + 2 * (b * N + n)
    tl.store(to, mean, mask=n < N)
    tl.store(to + 1, tl.where(keep, 1 / tl.sqrt(square / D + eps), 0.0), mask=n < N)


@triton.jit
def read_statistics(stats, row, keep, NORM: tl.constexpr):
    """(mean, 1/std) of token rows; without a LayerNorm nothing is read."""
    mean, rstd = row.to(tl.float32), row.to(tl.float32)
    if NORM:
        mean = tl.load(stats + 2 * row, mask=keep, other=0.0)
        rstd = tl.load(stats + 2 * row + 1, mask=keep, other=0.0)
    return mean, rstd


@triton.jit
def read_tokens(x_rows, keep, mean, rstd, d, D, NORM: tl.constexpr):
    """xhat of token rows at the columns d, in x's dtype; masked rows are 0, columns from D on finite."""
    x = tl.load(x_rows[:, None] + d[None, :], mask=keep[:, None] & (d < D)[None, :], other=0.0)
    if NORM:
        x = ((x.to(tl.float32) - mean[:, None]) * rstd[:, None]).to(x.dtype)
    return x


@triton.jit
def times_rows(acc, x, rows, k, d, D, K, PRECISION: tl.constexpr):
    """acc + x rows^T for the columns d of both, rows [K,D]."""
    at = rows + k.to(tl.int64)[None, :] * D + d[:, None]
    other = tl.load(at, mask=(k < K)[None, :] & (d < D)[:, None], other=0.0)
    return tl.dot(x, other, acc, input_precision=PRECISION)


def statistics(x: Tensor, mask: Tensor | None, norm: bool, eps: float) -> Tensor:
    """Mean and 1/std [B,N,2] of all tokens in float32; empty without a LayerNorm."""
    b, n, d = x.shape
    stats = x.new_empty((b, n, 2) if norm else (0,), dtype=torch.float32)
    if norm:
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        launch(
            statistics_kernel, (b * ceil_div(n, 16),), x, x, mask_or_x, stats, n, d, *x.stride()[:2],
            *mask_strides, eps, HAS_MASK=mask is not None, BLOCK_N=16, BLOCK_D=padded(d, at_most=256),
            num_warps=4,
        )  # fmt: skip
    return stats


def query_stride(queries: Tensor) -> int:
    """Elements from one image's queries to the next one's; 0 where they are shared."""
    return 0 if shared(queries) else queries.shape[1] * queries.shape[2]


def shared(queries: Tensor) -> bool:
    """Whether all images have the same queries."""
    return not symbolic(queries.shape[0]) and queries.shape[0] == 1
