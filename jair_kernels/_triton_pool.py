"""Softmax over tokens and weighted pooling in Triton: what fused_token_pool and fused_tokenlearner share.

Tokens are cut into segments; each program pools one segment with the softmax of that segment alone, and where
there are several they are merged in the order of the tokens. Of a softmax its largest score and the inverse
of its sum are kept, both 0 for the softmax of nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import Config, ceil_div, launch, symbolic

Tensor = torch.Tensor

# Programs that fill a large GPU twice; a fixed number, so that results do not depend on the GPU at hand.
PROGRAMS = 264

DOTS = {"BLOCK_R": 4, "BLOCK_C": 512}  # rows of `dot_rows`, and columns at a time


@triton.jit
def tokens_kept(mask, b, n, end, stride_b, stride_n, HAS_MASK: tl.constexpr):
    """Which of the tokens n of image b exist and are kept."""
    keep = n < end
    if HAS_MASK:
        keep = keep & (tl.load(mask + b * stride_b + n * stride_n, mask=keep, other=0) != 0)
    return keep


@triton.jit
def kept_count(mask, b, N, stride_b, stride_n, HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr):
    """Number of kept tokens of image b, at least 1."""
    count = tl.full([BLOCK_N], 0, tl.float32)
    for n0 in range(0, N, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
        count += tokens_kept(mask, b, n, N, stride_b, stride_n, HAS_MASK).to(tl.float32)
    return tl.maximum(tl.sum(count, 0), 1.0)


@triton.jit
def add_to_softmax(top, total, s):
    """Online softmax: the running maximum and the sum of exponentials below it, with the rows of s added."""
    new = tl.maximum(top, tl.max(s, 0))
    base = tl.where(new == float("-inf"), 0.0, new)
    total = total * tl.exp(top - base) + tl.sum(tl.exp(s - base[None, :]), 0)
    return new, total


@triton.jit
def finish_softmax(top, total):
    """What is kept: (max, 1/sum)."""
    return tl.where(total == 0, 0.0, top), tl.where(total == 0, 0.0, 1 / tl.where(total == 0, 1.0, total))


@triton.jit
def store_softmax(pairs, k, K, top, inverse):
    """Outputs k of an image's pairs [K,2]."""
    tl.store(pairs + 2 * k, top, mask=k < K)
    tl.store(pairs + 2 * k + 1, inverse, mask=k < K)


@triton.jit
def load_softmax(pairs, k, K):
    """(max, 1/sum) of outputs k from an image's pairs [K,2]."""
    return tl.load(pairs + 2 * k, mask=k < K, other=0.0), tl.load(pairs + 2 * k + 1, mask=k < K, other=0.0)


@triton.jit
def exponentials(s, top, keep):
    """exp(s - max), exactly 0 in masked tokens: weights that a pooled sum is divided by the sum of later."""
    return tl.where(keep[:, None], tl.exp(s - top[None, :]), 0.0)


@triton.jit
def softmax_weights(s, top, inverse, keep):
    """exp(s - max) / sum, exactly 0 in masked tokens."""
    return exponentials(s, top, keep) * inverse[None, :]


@triton.jit
def pool_chunk(acc, weights, x_rows, keep, d, D, PRECISION: tl.constexpr):
    """acc + weights^T x over one block of tokens, for the columns d of x."""
    x = tl.load(x_rows[:, None] + d[None, :], mask=keep[:, None] & (d < D)[None, :], other=0.0)
    return tl.dot(tl.trans(weights).to(x.dtype), x, acc, input_precision=PRECISION)


@triton.jit
def merge_kernel(
    parts, part_softmax, mask, y, softmax, N, D, K, m_b, m_n, splits, SOFTMAX: tl.constexpr,
    MEAN: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y[b,k] = sum over segments of their share of the softmax times y_segment, or their plain sum."""
    row = tl.program_id(0).to(tl.int64)
    b, k = row // K, row % K
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = b * splits * K + k
    top = -float("inf")
    total = 0.0
    acc = tl.full([BLOCK_D], 0.0, tl.float32)
    for i in range(splits):
        part = tl.load(parts + (first + i * K) * D + d, mask=d < D, other=0.0)
        if SOFTMAX:
            pair = part_softmax + 2 * (first + i * K)
            here, inverse = tl.load(pair), tl.load(pair + 1)
            here = tl.where(inverse == 0, -float("inf"), here)
            new = tl.maximum(top, here)
            base = tl.where(new == float("-inf"), 0.0, new)
            old, weight = tl.exp(top - base), tl.exp(here - base) / tl.where(inverse == 0, 1.0, inverse)
            acc = acc * old + part * weight
            total = total * old + weight
            top = new
        else:
            acc += part
    if SOFTMAX:
        top, inverse = finish_softmax(top, total)
        acc *= inverse
        tl.store(softmax + 2 * row, top, mask=tl.program_id(1) == 0)
        tl.store(softmax + 2 * row + 1, inverse, mask=tl.program_id(1) == 0)
    if MEAN:
        acc = acc / kept_count(mask, b, N, m_b, m_n, HAS_MASK, BLOCK_D)
    tl.store(y + row * D + d, acc.to(y.dtype.element_ty), mask=d < D)


@triton.jit
def dot_rows(block, a, b, out, R, D, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """out[i] = a[i] . b[i] of one block of rows, a warp for each: delta = y . dy of every output token."""
    row = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        at, inside = row[:, None] * D + d[None, :], (row < R)[:, None] & (d < D)[None, :]
        left = tl.load(a + at, mask=inside, other=0.0).to(tl.float32)
        acc += left * tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(acc, 1), mask=row < R)


@triton.jit
def row_dot_kernel(a, b, out, R, D, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[i] = a[i] . b[i]."""
    dot_rows(tl.program_id(0), a, b, out, R, D, BLOCK_R, BLOCK_C)


@triton.jit
def score_gradient(weights, dweights, delta, b, k, N, K, BLOCK_N: tl.constexpr):
    """dS = p (dP - delta). Where the block is the whole image delta is summed from these very p and dP,
    which is exact for a single token; else it is y . dy.
    """
    if N <= BLOCK_N:
        inner = tl.sum(weights * dweights, 0)
    else:
        inner = tl.load(delta + b * K + k, mask=k < K, other=0.0)
    return weights * (dweights - inner[None, :])


def mask_arguments(mask: torch.Tensor | None, x: torch.Tensor) -> tuple[Any, ...]:
    """A mask and its strides; where there is none, what the kernel never reads."""
    return (x, 0, 0) if mask is None else (mask, mask.stride(0), mask.stride(1))


def split_tokens(b: Any, n: Any, chunks: Any, config: Config) -> tuple[Any, Any]:
    """(segments of an image, tokens of a segment): few, but enough to fill the GPU at small batch, and
    short enough that the second read of x hits the L2 cache.
    """
    segment = config["SEGMENT"]
    if symbolic(
        b, n
    ):  # one choice for every size; one segment more, as a count that may be 1 would leave a guard
        return ceil_div(n, segment) + 1, segment
    fill = ceil_div(n, max(1, PROGRAMS // (b * chunks)))
    segment = config["BLOCK_N"] * ceil_div(min(segment, fill), config["BLOCK_N"])
    return ceil_div(n, segment), segment


def parts_of(y: Tensor, softmax: Tensor, splits: Any) -> tuple[Tensor, Tensor, bool]:
    """Where the segments write: y and softmax themselves, or what `merge` joins."""
    if not symbolic(splits) and splits == 1:
        return y, softmax, False
    b, k, d = y.shape
    parts = y.new_empty((b, splits, k, d), dtype=torch.float32)
    return parts, softmax.new_empty((b, splits, k, 2)), True


def merge(
    parts: Tensor, part_softmax: Tensor, mask: Tensor | None, n: Any, y: Tensor, softmax: Tensor, mean: bool
) -> None:
    """y [B,K,D] and softmax [B,K,2] from all segments; an empty one means sigmoid weights, simply added."""
    b, splits, k, d = parts.shape
    block = 256
    launch(
        merge_kernel, (b * k, ceil_div(d, block)), y, parts, part_softmax, *mask_arguments(mask, y)[:1], y,
        softmax, n, d, k, *mask_arguments(mask, y)[1:], splits, SOFTMAX=softmax.dim() == 3, MEAN=mean,
        HAS_MASK=mask is not None, BLOCK_D=block, num_warps=4,
    )  # fmt: skip


def row_dots(y: Tensor, dy: Tensor) -> Tensor:
    """delta [B,K] = y . dy in float32."""
    b, k, d = y.shape
    delta = y.new_empty((b, k), dtype=torch.float32)
    launch(
        row_dot_kernel, (ceil_div(b * k, DOTS["BLOCK_R"]),), y, y, dy, delta, b * k, d, **DOTS, num_warps=4
    )  # fmt: skip
    return delta
