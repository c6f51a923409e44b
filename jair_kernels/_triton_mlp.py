"""The score MLP w2 gelu(w1 LN(x) + b1) + b2 in Triton, from its first product on: what fused_tokenlearner and
fused_tokenfuser share.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._triton import ceil_div, contiguous, launch, padded, precision
from jair_kernels._triton_hidden import Hidden
from jair_kernels._triton_pool import tokens_kept

Tensor = torch.Tensor


@triton.jit
def gelu(h, TANH: tl.constexpr):
    """GELU; the tanh form as h sigmoid(2u), which keeps its digits for large negative h."""
    if TANH:
        return h / (1 + tl.exp(-1.5957691216057308 * h * (1 + 0.044715 * h * h)))
    return 0.5 * h * (1 + tl.erf(h * 0.7071067811865476))


@triton.jit
def gelu_slope(h, TANH: tl.constexpr):
    """The derivative of GELU."""
    if TANH:
        gate = 1 / (1 + tl.exp(-1.5957691216057308 * h * (1 + 0.044715 * h * h)))
        return gate + h * gate * (1 - gate) * 1.5957691216057308 * (1 + 0.134145 * h * h)
    return 0.5 * (1 + tl.erf(h * 0.7071067811865476)) + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)


@triton.jit
def load_statistics(stats, row, keep):
    """Mean and 1/std of a block of tokens."""
    return tl.load(stats + 2 * row, mask=keep, other=0.0), tl.load(stats + 2 * row + 1, mask=keep, other=0.0)


@triton.jit
def hidden_block(
    products, row, keep, mean, rstd, c, e, h_at, H, KEPT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(h, h - e) of one block of hidden units, from the products of `Hidden`; h as x's dtype holds it, which
    one that was kept is too.
    """
    at = products + row[:, None] * H + h_at[None, :]
    loaded = tl.load(at, mask=keep[:, None] & (h_at < H)[None, :], other=0.0).to(tl.float32)
    e_h = tl.load(e + h_at, mask=h_at < H, other=0.0)
    if KEPT:
        return loaded, loaded - e_h[None, :]
    if tl.float32 != DTYPE:
        c_h = tl.load(c + h_at, mask=h_at < H, other=0.0)
        loaded = rstd[:, None] * (loaded - mean[:, None] * c_h[None, :])
    return (loaded + e_h[None, :]).to(DTYPE).to(tl.float32), loaded


@triton.jit
def second_product(h, w2, h_at, k, H, K, TANH: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr):
    """gelu(h) w2^T for one block of hidden units."""
    inside = (h_at < H)[:, None] & (k < K)[None, :]
    w2t = tl.load(w2 + k[None, :] * H + h_at[:, None], mask=inside, other=0.0).to(DTYPE)
    return tl.dot(gelu(h, TANH).to(DTYPE), w2t, input_precision=PRECISION)


@triton.jit
def scores_of(
    products, row, keep, mean, rstd, c, e, w2, b2, hidden, H, K, TANH: tl.constexpr, HAS_B2: tl.constexpr,
    KEPT: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Scores of a block of tokens; KEEP: h goes to `hidden`. The forward's too: where the backward finds
    other bits, its exp(s - max) / sum is no softmax.
    """
    k = tl.arange(0, BLOCK_K)
    s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for h0 in range(0, H, BLOCK_H):
        at = h0 + tl.arange(0, BLOCK_H)
        h, _normed = hidden_block(products, row, keep, mean, rstd, c, e, at, H, KEPT, DTYPE)
        if KEEP:
            to = hidden + row[:, None] * H + at[None, :]
            tl.store(to, h.to(DTYPE), mask=keep[:, None] & (at < H)[None, :])
        s += second_product(h, w2, at, k, H, K, TANH, PRECISION, DTYPE)
    if HAS_B2:
        s += tl.load(b2 + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    return s


@triton.jit
def scores_again(
    mask, products, dweights, wg, c, e, w2, b2, stats, N, H, K, m_b, m_n, TANH: tl.constexpr,
    HAS_B2: tl.constexpr, HAS_MASK: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What a backward begins with, of its block of tokens: image, tokens, rows, which are kept, mean, 1/std,
    scores and dP.
    """
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    k, row = tl.arange(0, BLOCK_K), b * N + n
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    mean, rstd = load_statistics(stats, row, keep)
    s = scores_of(
        products, row, keep, mean, rstd, c, e, w2, b2, products, H, K, TANH, HAS_B2, KEPT, False, PRECISION,
        wg.dtype.element_ty, BLOCK_N, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    at = dweights + row[:, None] * K + k[None, :]
    dp = tl.load(at, mask=keep[:, None] & (k < K)[None, :], other=0.0)
    return b, n, row, keep, mean, rstd, s, dp


@triton.jit
def scores_kernel(
    wg, c, e, w2, b2, products, stats, out, hidden, T, H, K, TANH: tl.constexpr, SIGMOID: tl.constexpr,
    HAS_B2: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Scores of a block of tokens, or their sigmoid; KEEP: and the hidden layer."""
    row, k = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    keep = row < T
    mean, rstd = load_statistics(stats, row, keep)
    s = scores_of(
        products, row, keep, mean, rstd, c, e, w2, b2, hidden, H, K, TANH, HAS_B2, False, KEEP, PRECISION,
        wg.dtype.element_ty, BLOCK_N, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    if SIGMOID:
        s = 1 / (1 + tl.exp(-s))
    at = out + row[:, None] * K + k[None, :]
    tl.store(at, s.to(out.dtype.element_ty), mask=keep[:, None] & (k < K)[None, :])


def scores(
    layer: Hidden, stats: Tensor, w2: Tensor, b2: Tensor | None, tanh: bool, sigmoid: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """Scores [B,N,K] in float32, or their sigmoid in x's dtype; and in that h [B,N,H], else [B,N,0]."""
    (b, n, h), k = layer.products.shape, w2.shape[0]
    wg = layer.wg
    out = wg.new_empty((b, n, k), dtype=wg.dtype if sigmoid else torch.float32)
    kept = wg.new_empty((b, n, h if keep else 0))
    blocks = score_blocks(wg, k)
    launch(
        scores_kernel, (ceil_div(b * n, blocks["BLOCK_N"]),), wg, wg, layer.c, layer.e, contiguous(w2, wg),
        contiguous(b2, wg), layer.products, stats, out, kept if keep else wg, b * n, h, k, TANH=tanh,
        SIGMOID=sigmoid, HAS_B2=b2 is not None, KEEP=keep, PRECISION=precision(wg), **blocks,
    )  # fmt: skip
    return out, kept


def score_blocks(x: Tensor, k: int) -> dict[str, int]:
    """The block of a program that keeps the scores and some hidden units of some tokens in registers; one for
    both directions. Without matrix units, in float32, what is multiplied takes registers too.
    """
    columns = padded(k)
    size = 32 if columns <= 32 and x.dtype != torch.float32 else 16
    warps = 8 if columns > 128 or x.dtype == torch.float32 else 4
    return {"BLOCK_N": size, "BLOCK_H": 16, "BLOCK_K": columns, "num_warps": warps, "num_stages": 1}
