"""The backward of query_pool in Triton: four kernels, all of them matrix products but the second.

    scores, dP = xhat [queries^T | dY^T]      delta = sum_n P dP / sum_n P      dS = P (dP - delta)
    dx = LN'(P dY + dS queries)               dqueries = dS^T xhat

delta is summed over the whole image from the very P and dP that it is subtracted from. Sums over tokens are
made of parts, added in their order, without atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import Config, ceil_div, configured, launch, precision, rows_contiguous, symbolic
from jair_kernels._triton_loops import before_copies
from jair_kernels._triton_pool import (
    add_to_softmax,
    exponentials,
    finish_softmax,
    load_softmax,
    mask_arguments,
    softmax_weights,
    tokens_kept,
)
from jair_kernels.query_pool.triton_rows import (
    MAX_CHUNK,
    query_stride,
    read_statistics,
    read_tokens,
    shared,
    times_rows,
)

Tensor = torch.Tensor

# Programs of the pass that sums dqueries; fixed, so that the order of summation does not depend on the GPU.
_PROGRAMS = 256


@triton.jit
def scores_kernel(
    dy, x, queries, mask, softmax, stats, scores, dweights, sums, N, D, K, x_b, x_n, q_b, m_b, m_n,
    NORM: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Scores and dP of one block of tokens for one chunk of queries; sums of P dP and P, max and 1/sum."""
    chunks, blocks = tl.cdiv(K, BLOCK_K), tl.cdiv(N, BLOCK_N)
    place = (tl.program_id(0) // chunks).to(tl.int64)
    b, n = place // blocks, (place % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (tl.program_id(0) % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
    keep, row = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK), b * N + n
    mean, rstd = read_statistics(stats, row, keep, NORM)
    s, dp = tl.zeros([BLOCK_N, BLOCK_K], tl.float32), tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    before_copies()
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        xt = read_tokens(x + b * x_b + n * x_n, keep, mean, rstd, d, D, NORM)
        s = times_rows(s, xt, queries + b * q_b, k, d, D, K, PRECISION)
        dp = times_rows(dp, xt, dy + b * K * D, k, d, D, K, PRECISION)
    if N <= BLOCK_N:
        # The image's softmax anew: a single token then weighs exactly 1, whatever s was rounded to.
        top, total = tl.full([BLOCK_K], float("-inf"), tl.float32), tl.full([BLOCK_K], 0.0, tl.float32)
        top, total = add_to_softmax(top, total, tl.where(keep[:, None], s, float("-inf")))
        top, inverse = finish_softmax(top, total)
    else:
        top, inverse = load_softmax(softmax + 2 * b * K, k, K)
    to = sums + place * 4 * K + k
    tl.store(to + 2 * K, top, mask=k < K)
    tl.store(to + 3 * K, inverse, mask=k < K)
    at, inside = row[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
    tl.store(scores + at, s, mask=inside)
    tl.store(dweights + at, dp, mask=inside)
    weights = exponentials(s, top, keep)
    tl.store(to, tl.sum(weights * dp, 0) * inverse, mask=k < K)
    tl.store(to + K, tl.sum(weights, 0) * inverse, mask=k < K)


@triton.jit
def score_gradient_kernel(
    mask, scores, dweights, sums, dy_sums, q_sums, p, ds, row_sums, N, K, T, q_b, m_b, m_n,
    NORM: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """P and dS = P (dP - delta) as the products take them, delta = sum_n P dP / sum_n P over the image.

    With a LayerNorm also, of each token, the chunk's part of P . rowsum(dY) + dS . rowsum(queries), which is
    D times the mean of dxhat, and of P . dP + dS . S, which is D times that of dxhat . xhat.
    """
    chunks, blocks = tl.cdiv(K, BLOCK_K), tl.cdiv(N, BLOCK_N)
    chunk, place = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    b, n = place // blocks, (place % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    keep, row = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK), b * N + n
    inner, total = tl.full([BLOCK_K], 0.0, tl.float32), tl.full([BLOCK_K], 0.0, tl.float32)
    at = sums + b * blocks * 4 * K + k
    for _ in range(blocks):
        inner += tl.load(at, mask=k < K, other=0.0)
        total += tl.load(at + K, mask=k < K, other=0.0)
        at += 4 * K
    delta = tl.where(total > 0, inner / tl.where(total > 0, total, 1.0), 0.0)
    at = sums + (place * 4 + 2) * K + k
    top, inverse = tl.load(at, mask=k < K, other=0.0), tl.load(at + K, mask=k < K, other=0.0)
    cell, inside = row[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
    s = tl.load(scores + cell, mask=inside, other=0.0)
    dp = tl.load(dweights + cell, mask=inside, other=0.0)
    weights = softmax_weights(s, top, inverse, keep)
    dscores = (weights * (dp - delta[None, :])).to(ds.dtype.element_ty)
    weights = weights.to(p.dtype.element_ty)
    tl.store(p + cell, weights, mask=inside)
    tl.store(ds + cell, dscores, mask=inside)
    if NORM:
        w, g = weights.to(tl.float32), dscores.to(tl.float32)
        dy_sum = tl.load(dy_sums + b * K + k, mask=k < K, other=0.0)
        q_sum = tl.load(q_sums + b * q_b + k, mask=k < K, other=0.0)
        to = row_sums + 2 * (chunk.to(tl.int64) * T + row)
        tl.store(to, tl.sum(w * dy_sum[None, :] + g * q_sum[None, :], 1), mask=n < N)
        tl.store(to + 1, tl.sum(w * dp + g * s, 1), mask=n < N)


@triton.jit
def input_gradient_kernel(
    dy, x, queries, mask, stats, p, ds, row_sums, dx, N, D, K, T, sums, x_b, x_n, q_b, m_b, m_n,
    NORM: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dxhat = P dY + dS queries, some columns; dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat . xhat))."""
    columns, blocks = tl.cdiv(D, BLOCK_D), tl.cdiv(N, BLOCK_N)
    place = (tl.program_id(0) // columns).to(tl.int64)
    b, n = place // blocks, (place % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = (tl.program_id(0) % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    keep, row = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK), b * N + n
    dy_image, q_image = dy + b * K * D, queries + b * q_b
    out = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    before_copies()
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K).to(tl.int64)
        cell, inside = row[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
        at, wide = k[:, None] * D + d[None, :], (k < K)[:, None] & (d < D)[None, :]
        weights = tl.load(p + cell, mask=inside, other=0.0)
        out = tl.dot(weights, tl.load(dy_image + at, mask=wide, other=0.0), out, input_precision=PRECISION)
        dscores = tl.load(ds + cell, mask=inside, other=0.0)
        out = tl.dot(dscores, tl.load(q_image + at, mask=wide, other=0.0), out, input_precision=PRECISION)
    if NORM:
        mean, rstd = read_statistics(stats, row, keep, NORM)
        along_one, along_x = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
        at = row_sums + 2 * row
        for _ in range(sums):
            along_one += tl.load(at, mask=keep, other=0.0)
            along_x += tl.load(at + 1, mask=keep, other=0.0)
            at += 2 * T
        xt = tl.load(
            x + (b * x_b + n * x_n)[:, None] + d[None, :], mask=keep[:, None] & (d < D)[None, :], other=0.0
        )
        xhat = (xt.to(tl.float32) - mean[:, None]) * rstd[:, None]
        out = rstd[:, None] * (out - (along_one[:, None] + xhat * along_x[:, None]) / D)
    to = dx + row[:, None] * D + d[None, :]
    tl.store(to, out.to(dx.dtype.element_ty), mask=(n < N)[:, None] & (d < D)[None, :])


@triton.jit
def query_gradient_kernel(
    x, mask, stats, ds, parts, N, T, D, K, x_b, x_n, m_b, m_n, rows, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dS^T xhat of one range of tokens, for a chunk of queries and of columns."""
    chunks, columns = tl.cdiv(K, BLOCK_K), tl.cdiv(D, BLOCK_D)
    part, cell = (tl.program_id(0) // (chunks * columns)).to(tl.int64), tl.program_id(0) % (chunks * columns)
    k = (cell // columns) * BLOCK_K + tl.arange(0, BLOCK_K)
    d = (cell % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = part * rows
    end = tl.minimum(begin + rows, T)
    acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    before_copies()
    for t0 in range(begin, end, BLOCK_N):
        t = t0 + tl.arange(0, BLOCK_N).to(tl.int64)
        keep = t < end
        ahead = (t0 % N).to(tl.int32) + tl.arange(0, BLOCK_N)  # one 64-bit division a block, not one a token
        b, n = t0 // N + ahead // N, (ahead % N).to(tl.int64)
        if HAS_MASK:
            keep = keep & (tl.load(mask + b * m_b + n * m_n, mask=keep, other=0) != 0)
        mean, rstd = read_statistics(stats, t, keep, NORM)
        xt = read_tokens(x + b * x_b + n * x_n, keep, mean, rstd, d, D, NORM)
        inside = keep[None, :] & (k < K)[:, None]
        dst = tl.load(ds + t[None, :] * K + k[:, None], mask=inside, other=0.0)
        acc = tl.dot(dst, xt, acc, input_precision=PRECISION)
    out = parts + (part * K + k)[:, None] * D + d[None, :]
    tl.store(out, acc.to(parts.dtype.element_ty), mask=(k < K)[:, None] & (d < D)[None, :])


@triton.jit
def add_parts_kernel(parts, out, count, size, BLOCK: tl.constexpr):
    """The sums of all ranges of tokens, added first to last."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.full([BLOCK], 0.0, tl.float32)
    at = parts + i
    for _ in range(count):
        acc += tl.load(at, mask=i < size, other=0.0)
        at += size
    tl.store(out + i, acc.to(out.dtype.element_ty), mask=i < size)


def backward(
    dy: Tensor,
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    y: Tensor,
    softmax: Tensor,
    stats: Tensor,
    norm: bool,
) -> tuple[Tensor, Tensor]:
    """The op's backward: dx [B,N,D] and dqueries like queries, in x's dtype."""
    (b, n, d), k = x.shape, queries.shape[1]
    dx, dqueries = x.new_empty((b, n, d)), x.new_empty(queries.shape)
    if not symbolic(b) and b == 0:
        return dx, dqueries.zero_()
    x, dy, queries = rows_contiguous(x), dy.contiguous(), queries.contiguous()
    softmax = softmax.contiguous()
    stats = stats.contiguous() if norm else x
    mask_or_x, *mask_strides = mask_arguments(mask, x)
    strides = (*x.stride()[:2], query_stride(queries), *mask_strides)
    has: dict[str, Any] = {"NORM": norm, "HAS_MASK": mask is not None}

    def run(config: Config) -> tuple[Tensor, Tensor]:
        p, ds, row_sums = score_gradients(dy, x, queries, mask_or_x, softmax, stats, strides, has, config)
        blocks, columns = ceil_div(n, config["BLOCK_N"]), ceil_div(d, config["BLOCK_D"])
        launch(
            input_gradient_kernel, (b * blocks * columns,), x, dy, x, queries, mask_or_x, stats, p, ds,
            row_sums, dx, n, d, k, b * n, row_sums.shape[0], *strides, **has, PRECISION=precision(x),
            **config,
        )  # fmt: skip
        query_gradients(x, mask_or_x, stats, ds, dqueries, strides, has, config)
        return dx, dqueries

    result: tuple[Tensor, Tensor] = configured("query_pool_backward", x, min(k, MAX_CHUNK), run)
    return result


def score_gradients(
    dy: Tensor, x: Tensor, queries: Tensor, mask: Tensor, softmax: Tensor, stats: Tensor,
    strides: tuple[Any, ...], has: dict[str, Any], config: Config,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """P and dS [B,N,K] in x's dtype, and of every chunk of queries the sums of each token [chunks,B,N,2]."""
    (b, n, d), k = x.shape, queries.shape[1]
    chunks, blocks = ceil_div(k, config["BLOCK_K"]), ceil_div(n, config["BLOCK_N"])
    scores, dweights = (x.new_empty((b, n, k), dtype=torch.float32) for _ in range(2))
    sums = x.new_empty((b, blocks, 4, k), dtype=torch.float32)
    launch(
        scores_kernel, (b * blocks * chunks,), x, dy, x, queries, mask, softmax, stats, scores, dweights,
        sums, n, d, k, *strides, **has, PRECISION=precision(x), **config,
    )  # fmt: skip
    p, ds = (x.new_empty((b, n, k)) for _ in range(2))
    row_sums = x.new_empty((chunks, b, n, 2) if has["NORM"] else (0,), dtype=torch.float32)
    dy_sums, q_sums = (t.sum(-1, dtype=torch.float32) if has["NORM"] else softmax for t in (dy, queries))
    sizes: dict[str, Any] = {name: config[name] for name in ("BLOCK_N", "BLOCK_K", "num_warps")}
    launch(
        score_gradient_kernel, (b * blocks * chunks,), x, mask, scores, dweights, sums, dy_sums, q_sums, p,
        ds, row_sums, n, k, b * n, 0 if shared(queries) else k, *strides[3:], **has, **sizes,
    )  # fmt: skip
    return p, ds, row_sums


def query_gradients(
    x: Tensor, mask: Tensor, stats: Tensor, ds: Tensor, dqueries: Tensor, strides: tuple[Any, ...],
    has: dict[str, Any], config: Config,
) -> None:  # fmt: skip
    """dqueries: of every image by itself, or in ranges of all tokens."""
    (b, n, d), k = x.shape, dqueries.shape[1]
    cells, tokens = ceil_div(k, config["BLOCK_K"]) * ceil_div(d, config["BLOCK_D"]), b * n
    parts, splits, rows = dqueries, b, n
    if shared(dqueries):
        splits = max(1, _PROGRAMS // cells)
        if not symbolic(tokens):
            splits = min(splits, ceil_div(tokens, config["BLOCK_N"]))
        rows = config["BLOCK_N"] * ceil_div(ceil_div(tokens, splits), config["BLOCK_N"])
        parts = x.new_empty((splits, k, d), dtype=torch.float32)
    launch(
        query_gradient_kernel, (splits * cells,), x, x, mask, stats, ds, parts, n, tokens, d, k, *strides[:2],
        *strides[3:], rows, **has, PRECISION=precision(x), **config,
    )  # fmt: skip
    if parts is not dqueries:
        launch(
            add_parts_kernel, (ceil_div(k * d, 256),), x, parts, dqueries, splits, k * d, BLOCK=256,
            num_warps=4,
        )  # fmt: skip
