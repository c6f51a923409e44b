"""The gradient of x through the score MLP, in Triton: what fused_tokenlearner and fused_tokenfuser share.

    dS = P (dP - sum P dP)  or  dP P (1 - P)      dH = (dS w2) gelu'(h)      xhat = (x - m) r
    dx = r (dH Wg - (dH . c) / D - xhat (dH . (h - e)) / D)  [+ P other]

Both means of the LayerNorm's backward are products as long as the hidden layer, not as long as the row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._triton import Config, ceil_div, configured, contiguous, launch, padded, precision
from jair_kernels._triton_grad import Scratch
from jair_kernels._triton_hidden import Hidden
from jair_kernels._triton_mlp import (
    gelu,
    gelu_slope,
    hidden_block,
    load_statistics,
    score_blocks,
    scores_again,
)
from jair_kernels._triton_pool import (
    add_to_softmax,
    finish_softmax,
    load_softmax,
    mask_arguments,
    softmax_weights,
    tokens_kept,
)

Tensor = torch.Tensor


@triton.jit
def hidden_gradient(h, normed, ds, w2, c, h_at, k, H, K, TANH: tl.constexpr, PRECISION: tl.constexpr,
                    DTYPE: tl.constexpr):  # fmt: skip
    """(dH, gelu(h), dH . c, dH . (h - e)) of one block of hidden units; dH as rounded for the products."""
    inside = (k < K)[:, None] & (h_at < H)[None, :]
    w2t = tl.load(w2 + k[:, None] * H + h_at[None, :], mask=inside, other=0.0).to(DTYPE)
    dh = (tl.dot(ds.to(DTYPE), w2t, input_precision=PRECISION) * gelu_slope(h, TANH)).to(DTYPE)
    c_h = tl.load(c + h_at, mask=h_at < H, other=0.0)
    along_c = tl.sum(dh.to(tl.float32) * c_h[None, :], 1)
    return dh, gelu(h, TANH).to(DTYPE), along_c, tl.sum(dh.to(tl.float32) * normed, 1)


@triton.jit
def scores_gradient_kernel(
    mask, products, dweights, wg, c, e, w2, b2, stats, softmax, sums, weights, dh, g, ds, along, N, H, K,
    m_b, m_n, SIGMOID: tl.constexpr, TANH: tl.constexpr, HAS_B2: tl.constexpr, HAS_MASK: tl.constexpr,
    KEPT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of tokens: the scores again, P, dS, dH, gelu(h), and dH . c and dH . (h - e)."""
    b, n, row, keep, mean, rstd, s, dp = scores_again(
        mask, products, dweights, wg, c, e, w2, b2, stats, N, H, K, m_b, m_n, TANH, HAS_B2, HAS_MASK, KEPT,
        PRECISION, BLOCK_N, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    k, inside = tl.arange(0, BLOCK_K), n < N
    at, there = row[:, None] * K + k[None, :], (k < K)[None, :]
    if SIGMOID:
        p = 1 / (1 + tl.exp(-s))
        dscores = tl.where(keep[:, None], dp * p * (1 - p), 0.0)
    else:
        if N <= BLOCK_N:
            # The image's softmax anew: a single token then weighs exactly 1, whatever s was rounded to.
            top, total = tl.full([BLOCK_K], float("-inf"), tl.float32), tl.full([BLOCK_K], 0.0, tl.float32)
            top, total = add_to_softmax(top, total, tl.where(keep[:, None], s, float("-inf")))
            top, inverse = finish_softmax(top, total)
        else:
            top, inverse = load_softmax(softmax + 2 * b * K, k, K)
        p = softmax_weights(s, top, inverse, keep)
        inner = tl.sum(p * dp, 0)
        if N > BLOCK_N:
            share = tl.load(sums + (2 * b + 1) * K + k, mask=k < K, other=0.0)
            inner = tl.load(sums + 2 * b * K + k, mask=k < K, other=0.0) / tl.where(share == 0, 1.0, share)
        dscores = p * (dp - inner[None, :])
    tl.store(weights + at, p.to(weights.dtype.element_ty), mask=inside[:, None] & there)
    tl.store(ds + at, dscores.to(ds.dtype.element_ty), mask=inside[:, None] & there)
    along_c, along_h = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h_at = h0 + tl.arange(0, BLOCK_H)
        h, normed = hidden_block(products, row, keep, mean, rstd, c, e, h_at, H, KEPT, wg.dtype.element_ty)
        dh_block, g_block, more_c, more_h = hidden_gradient(
            h, normed, dscores, w2, c, h_at, k, H, K, TANH, PRECISION, wg.dtype.element_ty
        )  # fmt: skip
        along_c += more_c
        along_h += more_h
        to = row[:, None] * H + h_at[None, :]
        tl.store(dh + to, dh_block, mask=inside[:, None] & (h_at < H)[None, :])
        tl.store(g + to, g_block, mask=inside[:, None] & (h_at < H)[None, :])
    tl.store(along + 2 * row, along_c, mask=inside)
    tl.store(along + 2 * row + 1, along_h, mask=inside)


@triton.jit
def input_gradient_kernel(
    x, mask, stats, along, dh, wg, weights, other, dx, N, D, H, K, x_b, x_n, m_b, m_n,
    WITH_OTHER: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx of a block of tokens and columns; `other` is dY [B,K,D]."""
    blocks, chunks = tl.cdiv(N, BLOCK_N), tl.cdiv(D, BLOCK_D)
    place = tl.program_id(0) // chunks
    b = (place // blocks).to(tl.int64)
    n = (place % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    d, k = (tl.program_id(0) % chunks) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    row, rows, columns = b * N + n, (n < N)[:, None], (d < D)[None, :]
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    at = x + (b * x_b + n * x_n)[:, None] + d[None, :]
    values = tl.load(at, mask=keep[:, None] & columns, other=0.0).to(tl.float32)
    out = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h_at = h0 + tl.arange(0, BLOCK_H)
        dh_block = tl.load(dh + row[:, None] * H + h_at[None, :], mask=rows & (h_at < H)[None, :], other=0.0)
        w = tl.load(wg + h_at[:, None] * D + d[None, :], mask=(h_at < H)[:, None] & columns, other=0.0)
        out = tl.dot(dh_block, w, out, input_precision=PRECISION)
    mean, rstd = load_statistics(stats, row, keep)
    along_c, along_h = load_statistics(along, row, keep)
    xhat = (values - mean[:, None]) * rstd[:, None]
    out = rstd[:, None] * (out - (along_c[:, None] + xhat * along_h[:, None]) / D)
    if WITH_OTHER:
        p = tl.load(weights + row[:, None] * K + k[None, :], mask=rows & (k < K)[None, :], other=0.0)
        o = tl.load(other + (b * K + k)[:, None] * D + d[None, :], mask=(k < K)[:, None] & columns, other=0.0)
        out = tl.dot(p, o, out, input_precision=PRECISION)
    tl.store(dx + row[:, None] * D + d[None, :], out.to(dx.dtype.element_ty), mask=rows & columns)


def input_gradients(
    x: Tensor, mask: Tensor | None, layer: Hidden, stats: Tensor, w2: Tensor, b2: Tensor | None,
    dweights: Tensor, softmax: tuple[Tensor, Tensor] | None, other: Tensor | None, tanh: bool,
) -> tuple[Tensor, Tensor, Scratch]:  # fmt: skip
    """dx [B,N,D], P [B,N,K] in x's dtype, and what the parameters' gradients need.

    softmax: its max and 1/sum [B,K,2], and the sums of P dP and of P [B,2,K], not read where a block of rows
    is the whole image; None: P is the sigmoid of the scores.
    """
    (b, n, d), (k, h) = x.shape, w2.shape
    dx, weights, saved = x.new_empty((b, n, d)), x.new_empty((b, n, k)), Scratch.empty(x, h, k)
    along = x.new_empty((b, n, 2), dtype=torch.float32)
    mask_or_x, *mask_strides = mask_arguments(mask, x)
    blocks, has_mask = score_blocks(x, k), mask is not None
    launch(
        scores_gradient_kernel, (b * ceil_div(n, blocks["BLOCK_N"]),), x, mask_or_x, layer.products,
        dweights, layer.wg, layer.c, layer.e, contiguous(w2, x), contiguous(b2, x), stats,
        *(softmax or (stats, stats)), weights, *saved, along, n, h, k, *mask_strides, SIGMOID=softmax is None,
        TANH=tanh, HAS_B2=b2 is not None, HAS_MASK=has_mask, KEPT=layer.kept, PRECISION=precision(x),
        **blocks,
    )  # fmt: skip

    def run(config: Config) -> None:
        programs = b * ceil_div(n, config["BLOCK_N"]) * ceil_div(d, config["BLOCK_D"])
        launch(
            input_gradient_kernel, (programs,), x, x, mask_or_x, stats, along, saved.dh, layer.wg, weights,
            x if other is None else other, dx, n, d, h, k, *x.stride()[:2], *mask_strides,
            WITH_OTHER=other is not None, HAS_MASK=has_mask, PRECISION=precision(x), BLOCK_K=padded(k),
            BLOCK_H=padded(h, at_most=64), **config,
        )  # fmt: skip

    configured("input_gradient", x, k, run)
    return dx, weights, saved
