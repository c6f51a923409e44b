"""fused_token_pool in Triton, and the pooling half of fused_tokenlearner.

Tokens are cut into segments; each program pools one segment with the softmax of that segment alone, and where
there are several they are merged by their log-sum-exps in the order of the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import (
    Config,
    ceil_div,
    configured,
    launch,
    padded,
    precision,
    rows_contiguous,
    symbolic,
)

Tensor = torch.Tensor

# Programs that fill a large GPU twice; a fixed number, so that results do not depend on the GPU at hand.
_PROGRAMS = 264


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
def add_to_lse(top, total, s):
    """Online softmax: the running maximum and the sum of exponentials below it, with the rows of s added."""
    new = tl.maximum(top, tl.max(s, 0))
    base = tl.where(new == float("-inf"), 0.0, new)
    total = total * tl.exp(top - base) + tl.sum(tl.exp(s - base[None, :]), 0)
    return new, total


@triton.jit
def finish_lse(top, total):
    """log-sum-exp; -inf where nothing was kept."""
    return tl.where(total > 0, top + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))


@triton.jit
def softmax_weights(s, lse, keep):
    """exp(s - lse), exactly 0 in masked tokens (whose lse may be -inf)."""
    return tl.where(keep[:, None], tl.exp(s - lse[None, :]), 0.0)


@triton.jit
def pool_chunk(acc, weights, x_rows, keep, d, D, PRECISION: tl.constexpr):
    """acc + weights^T x over one block of tokens, for the columns d of x."""
    x = tl.load(x_rows[:, None] + d[None, :], mask=keep[:, None] & (d < D)[None, :], other=0.0)
    return tl.dot(tl.trans(weights).to(x.dtype), x, acc, input_precision=PRECISION)


@triton.jit
def forward_kernel(
    x, scores, mask, y, lse, N, D, K, x_b, x_n, s_b, s_n, s_k, m_b, m_n, splits, segment,
    SIGMOID: tl.constexpr, MEAN: tl.constexpr, HAS_MASK: tl.constexpr, MERGED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One segment of tokens, one chunk of columns. MERGED: y and lse are those of the segment alone."""
    chunks = tl.cdiv(D, BLOCK_D)
    place = (tl.program_id(0) // chunks).to(tl.int64)
    b, begin = place // splits, (place % splits) * segment
    d0 = (tl.program_id(0) % chunks) * BLOCK_D
    d, k = d0 + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    end = tl.minimum(begin + segment, N)
    s_cols = scores + b * s_b + k[None, :] * s_k
    lse_k = tl.full([BLOCK_K], float("-inf"), tl.float32)
    if not SIGMOID:
        total = tl.full([BLOCK_K], 0.0, tl.float32)
        for n0 in range(begin, end, BLOCK_N):
            n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
            keep = tokens_kept(mask, b, n, end, m_b, m_n, HAS_MASK)
            inside = keep[:, None] & (k < K)[None, :]
            s = tl.load(s_cols + n[:, None] * s_n, mask=inside, other=float("-inf")).to(tl.float32)
            lse_k, total = add_to_lse(lse_k, total, s)
        lse_k = finish_lse(lse_k, total)
        if d0 == 0:
            tl.store(lse + place * K + k, lse_k, mask=k < K)
        lse_k = tl.where(k < K, lse_k, 0.0)
    acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for n0 in range(begin, end, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
        keep = tokens_kept(mask, b, n, end, m_b, m_n, HAS_MASK)
        s = tl.load(s_cols + n[:, None] * s_n, mask=keep[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)
        if SIGMOID:
            weights = tl.where(keep[:, None], 1 / (1 + tl.exp(-s)), 0.0)
        else:
            weights = softmax_weights(s, lse_k, keep)
        acc = pool_chunk(acc, weights, x + b * x_b + n * x_n, keep, d, D, PRECISION)
    if MEAN and not MERGED:
        acc = acc / kept_count(mask, b, N, m_b, m_n, HAS_MASK, BLOCK_N)
    out = y + (place * K + k)[:, None] * D + d[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=(k < K)[:, None] & (d < D)[None, :])


@triton.jit
def merge_kernel(
    parts, part_lse, mask, y, lse, N, D, K, m_b, m_n, splits,
    SOFTMAX: tl.constexpr, MEAN: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y[b,k] = sum over segments of exp(lse_segment - lse) y_segment, or their plain sum."""
    row = tl.program_id(0).to(tl.int64)
    b, k = row // K, row % K
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = b * splits * K + k
    top = -float("inf")
    total = 0.0
    acc = tl.full([BLOCK_D], 0.0, tl.float32)
    for i in range(0, splits):
        part = tl.load(parts + (first + i * K) * D + d, mask=d < D, other=0.0)
        if SOFTMAX:
            here = tl.load(part_lse + first + i * K)
            new = tl.maximum(top, here)
            base = tl.where(new == float("-inf"), 0.0, new)
            old, weight = tl.exp(top - base), tl.exp(here - base)
            acc = acc * old + part * weight
            total = total * old + weight
            top = new
        else:
            acc += part
    if SOFTMAX:
        acc = acc / tl.where(total > 0, total, 1.0)
        tl.store(lse + row, finish_lse(top, total), mask=tl.program_id(1) == 0)
    if MEAN:
        acc = acc / kept_count(mask, b, N, m_b, m_n, HAS_MASK, BLOCK_D)
    tl.store(y + row * D + d, acc.to(y.dtype.element_ty), mask=d < D)


@triton.jit
def row_dot_kernel(a, b, out, D, BLOCK_D: tl.constexpr):
    """out[i] = a[i] . b[i]: delta = y . dy of every output token."""
    row = tl.program_id(0).to(tl.int64)
    acc = tl.full([BLOCK_D], 0.0, tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        left = tl.load(a + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        acc += left * tl.load(b + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(acc, 0))


@triton.jit
def score_gradient(weights, dweights, delta, b, k, N, K, BLOCK_N: tl.constexpr):
    """dS = p (dP - delta). Where the block is the whole image delta is summed from these very p and dP, which is
    exact for a single token; else it is y . dy.
    """
    if N <= BLOCK_N:
        inner = tl.sum(weights * dweights, 0)
    else:
        inner = tl.load(delta + b * K + k, mask=k < K, other=0.0)
    return weights * (dweights - inner[None, :])


@triton.jit
def backward_kernel(
    dy, x, scores, mask, lse, delta, dx, dscores, N, D, K, x_b, x_n, s_b, s_n, s_k, m_b, m_n,
    SIGMOID: tl.constexpr, MEAN: tl.constexpr, HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of tokens: dP = x dY^T, then dS and dx = P dY."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    d, k = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    x_rows, dy_image = x + b * x_b + n * x_n, dy + b * K * D
    dweights = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for d0 in range(0, D, BLOCK_D):
        xt = tl.load(x_rows[:, None] + (d0 + d)[None, :], mask=keep[:, None] & (d0 + d < D)[None, :], other=0.0)
        wide = (k < K)[None, :] & (d0 + d < D)[:, None]
        dyt = tl.load(dy_image + k[None, :] * D + (d0 + d)[:, None], mask=wide, other=0.0)
        dweights = tl.dot(xt, dyt, dweights, input_precision=PRECISION)
    factor = 1.0
    if MEAN:
        factor = 1 / kept_count(mask, b, N, m_b, m_n, HAS_MASK, BLOCK_N)
    dweights *= factor
    s_at = scores + b * s_b + n[:, None] * s_n + k[None, :] * s_k
    s = tl.load(s_at, mask=keep[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)
    if SIGMOID:
        weights = tl.where(keep[:, None], 1 / (1 + tl.exp(-s)), 0.0)
        ds = dweights * weights * (1 - weights)
    else:
        lse_k = tl.load(lse + b * K + k, mask=k < K, other=0.0)
        weights = softmax_weights(s, lse_k, keep)
        ds = score_gradient(weights, dweights, delta, b, k, N, K, BLOCK_N)
    row = b * N + n
    inside = (n < N)[:, None] & (k < K)[None, :]
    tl.store(dscores + row[:, None] * K + k[None, :], ds.to(dscores.dtype.element_ty), mask=inside)
    weights = weights.to(dx.dtype.element_ty)
    for d0 in range(0, D, BLOCK_D):
        wide = (k < K)[:, None] & (d0 + d < D)[None, :]
        dyt = tl.load(dy_image + k[:, None] * D + (d0 + d)[None, :], mask=wide, other=0.0)
        out = tl.dot(weights, dyt, input_precision=PRECISION) * factor
        to = dx + row[:, None] * D + (d0 + d)[None, :]
        tl.store(to, out.to(dx.dtype.element_ty), mask=(n < N)[:, None] & (d0 + d < D)[None, :])


def mask_arguments(mask: torch.Tensor | None, x: torch.Tensor) -> tuple[Any, ...]:
    """A mask and its strides; where there is none, what the kernel never reads."""
    return (x, 0, 0) if mask is None else (mask, mask.stride(0), mask.stride(1))


def split_tokens(b: Any, n: Any, chunks: Any, config: Config) -> tuple[Any, Any]:
    """(segments of an image, tokens of a segment): few, but enough to fill the GPU at small batch, and short enough
    that the second read of x hits the L2 cache.
    """
    segment = config["SEGMENT"]
    if symbolic(b, n):  # one choice for every size, which leaves no guard behind
        return ceil_div(n, segment), segment
    fill = ceil_div(n, max(1, _PROGRAMS // (b * chunks)))
    segment = config["BLOCK_N"] * ceil_div(min(segment, fill), config["BLOCK_N"])
    return ceil_div(n, segment), segment


def parts_of(y: Tensor, lse: Tensor, splits: Any) -> tuple[Tensor, Tensor, bool]:
    """Where the segments write: y and lse themselves, or what `merge` joins."""
    if not symbolic(splits) and splits == 1:
        return y, lse, False
    b, k, d = y.shape
    parts = y.new_empty((b, splits, k, d), dtype=torch.float32)
    return parts, lse.new_empty((b, splits, k)), True


def merge(parts: Tensor, part_lse: Tensor, mask: Tensor | None, n: Any, y: Tensor, lse: Tensor, mean: bool) -> None:
    """y [B,K,D] and lse [B,K] from all segments; an empty lse means sigmoid weights, which are summed."""
    b, splits, k, d = parts.shape
    block = 256
    launch(
        merge_kernel, (b * k, ceil_div(d, block)), y, parts, part_lse, *mask_arguments(mask, y)[:1], y, lse, n, d, k,
        *mask_arguments(mask, y)[1:], splits, SOFTMAX=lse.dim() == 2, MEAN=mean, HAS_MASK=mask is not None,
        BLOCK_D=block, num_warps=4,
    )  # fmt: skip


def row_dots(y: Tensor, dy: Tensor) -> Tensor:
    """delta [B,K] = y . dy in float32."""
    b, k, d = y.shape
    delta = y.new_empty((b, k), dtype=torch.float32)
    launch(row_dot_kernel, (b * k,), y, y, dy, delta, d, BLOCK_D=256, num_warps=4)
    return delta


def forward(x: Tensor, scores: Tensor, mask: Tensor | None, sigmoid: bool, mean: bool) -> tuple[Tensor, Tensor]:
    """The op's forward: y [B,K,D] in x's dtype and lse [B,K] in float32, empty for sigmoid."""
    (b, n, d), k = x.shape, scores.shape[2]
    y = x.new_empty((b, k, d))
    lse = x.new_empty((0,) if sigmoid else (b, k), dtype=torch.float32)
    if not symbolic(b, n) and b * n == 0:
        return y.zero_(), lse
    x = rows_contiguous(x)

    def run(config: Config) -> tuple[Tensor, Tensor]:
        chunks = ceil_div(d, config["BLOCK_D"])
        splits, segment = split_tokens(b, n, chunks, config)
        parts, part_lse, merged = parts_of(y, lse, splits)
        blocks = {name: config[name] for name in ("BLOCK_N", "BLOCK_D", "num_warps", "num_stages")}
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        launch(
            forward_kernel, (b * splits * chunks,), x, x, scores, mask_or_x, parts, part_lse, n, d, k,
            *x.stride()[:2], *scores.stride(), *mask_strides, splits, segment,
            SIGMOID=sigmoid, MEAN=mean, HAS_MASK=mask is not None, MERGED=merged, PRECISION=precision(x),
            BLOCK_K=padded(k), **blocks,
        )  # fmt: skip
        if merged:
            merge(parts, part_lse, mask, n, y, lse, mean)
        return y, lse

    result: tuple[Tensor, Tensor] = configured("token_pool_forward", x, k, run)
    return result


def backward(
    dy: Tensor, x: Tensor, scores: Tensor, mask: Tensor | None, y: Tensor, lse: Tensor, sigmoid: bool, mean: bool
) -> tuple[Tensor, Tensor]:
    """The op's backward: dx [B,N,D] and dscores [B,N,K] in x's dtype."""
    (b, n, d), k = x.shape, scores.shape[2]
    dx, dscores = x.new_empty((b, n, d)), x.new_empty((b, n, k))
    if not symbolic(b, n) and b * n == 0:
        return dx, dscores
    x, dy = rows_contiguous(x), dy.contiguous()
    delta = lse if sigmoid else row_dots(y, dy)

    def run(config: Config) -> tuple[Tensor, Tensor]:
        blocks = ceil_div(n, config["BLOCK_N"])
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        launch(
            backward_kernel, (b * blocks,), x, dy, x, scores, mask_or_x, lse, delta, dx, dscores, n, d, k,
            *x.stride()[:2], *scores.stride(), *mask_strides, SIGMOID=sigmoid, MEAN=mean, HAS_MASK=mask is not None,
            PRECISION=precision(x), BLOCK_K=padded(k), **config,
        )  # fmt: skip
        return dx, dscores

    result: tuple[Tensor, Tensor] = configured("token_pool_backward", x, k, run)
    return result
