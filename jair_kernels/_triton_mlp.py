"""The score MLP w2 gelu(w1 LN(x) + b1) + b2 in Triton: what fused_tokenlearner and fused_tokenfuser share.

The LayerNorm is folded into the first product, so that x is read as it is: with Wg = w1 diag(norm_weight),
c = Wg 1 and e = w1 norm_bias + b1, and m and r the mean and 1/std of a row,

    h = r ((x - s) Wg^T - (m - s) c) + e          for any shift s of the row

In float32 a shift near m keeps the digits that rows with |m| >> std would lose. In bfloat16 and float16 the
products of x as it is are exact in float32, s = 0, and c is the sum of the rounded Wg.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import launch, padded
from jair_kernels._triton_loops import before_copies

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
def fold_row(
    h, w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row h of Wg with its sums c and e."""
    h = h.to(tl.int64)
    c_sum, e_sum = tl.full([BLOCK_D], 0.0, tl.float32), tl.full([BLOCK_D], 0.0, tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        w = tl.load(w1 + h * D + d, mask=d < D, other=0.0).to(tl.float32)
        if HAS_BIAS:
            e_sum += w * tl.load(norm_bias + d, mask=d < D, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            w *= tl.load(norm_weight + d, mask=d < D, other=0.0).to(tl.float32)
        w = w.to(wg.dtype.element_ty)
        tl.store(wg + h * D + d, w, mask=d < D)
        c_sum += w.to(tl.float32)
    bias = tl.sum(e_sum, 0)
    if HAS_B1:
        bias += tl.load(b1 + h).to(tl.float32)
    tl.store(c + h, tl.sum(c_sum, 0))
    tl.store(e + h, bias)


@triton.jit
def prepare_kernel(
    w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Wg, c and e, a row a program."""
    h = tl.program_id(0)
    fold_row(h, w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1, HAS_WEIGHT, HAS_BIAS, BLOCK_D)


@triton.jit
def second_product(h, w2, h_at, k, H, K, TANH: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr):
    """gelu(h) w2^T for one block of hidden units."""
    inside = (h_at < H)[:, None] & (k < K)[None, :]
    w2t = tl.load(w2 + k[None, :] * H + h_at[:, None], mask=inside, other=0.0).to(DTYPE)
    return tl.dot(gelu(h, TANH).to(DTYPE), w2t, input_precision=PRECISION)


@triton.jit
def row_moments(x_rows, keep, D, eps, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mean and 1/std of a block of tokens, from a reading of x of their own: see `normed_product`."""
    d = tl.arange(0, BLOCK_D)
    inside = keep[:, None] & (d < D)[None, :]
    near = tl.load(x_rows[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    shift = tl.sum(near, 1) / tl.minimum(D, BLOCK_D)
    total, square = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    ahead: tl.constexpr = 2 if x_rows.dtype.element_ty == tl.float32 else 3
    before_copies()
    for d0 in tl.range(0, D, BLOCK_D, num_stages=ahead):
        in_d = d0 + d < D
        x = tl.load(x_rows[:, None] + (d0 + d)[None, :], mask=keep[:, None] & in_d[None, :], other=0.0)
        centred = tl.where(in_d[None, :], x.to(tl.float32) - shift[:, None], 0.0)
        total += tl.sum(centred, 1)
        square += tl.sum(centred * centred, 1)
    offset = total / D
    # compiled code hands eps over in float64
    rstd = (1 / tl.sqrt(tl.maximum(square / D - offset * offset, 0.0) + eps)).to(tl.float32)
    return shift + offset, rstd


@triton.jit
def normed_product(
    x_rows, keep, mean, rstd, wg, c, other, h_at, D, H, K, WITH_OTHER: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(h - e, x other^T) of one block of hidden units, from one reading of x; `other` is dY [K,D].

    In 16 bits x must go to nothing but the products. On Hopper they read it from shared memory while the next
    blocks are copied there; of what goes to registers as well Triton, to 3.9 at least, keeps a buffer too few
    (its issue 6691), and a copy overwrites what a product still reads. `tests.aot_triton` looks for that.
    """
    d, k = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    beside = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    before_copies()
    for d0 in range(0, D, BLOCK_D):
        in_d = d0 + d < D
        x = tl.load(x_rows[:, None] + (d0 + d)[None, :], mask=keep[:, None] & in_d[None, :], other=0.0)
        w = tl.load(
            wg + h_at[None, :] * D + (d0 + d)[:, None], mask=(h_at < H)[None, :] & in_d[:, None], other=0.0
        )
        if WITH_OTHER:
            at = other + k[None, :] * D + (d0 + d)[:, None]
            o = tl.load(at, mask=(k < K)[None, :] & in_d[:, None], other=0.0)
            beside = tl.dot(x, o, beside, input_precision=PRECISION)
        if tl.float32 == DTYPE:
            # A difference, as Triton makes `acc + dot` one sum over all of D, which would lose digits.
            x = tl.where(in_d[None, :], x - mean[:, None], 0.0)
            acc -= tl.dot(x, w, input_precision=PRECISION)
        else:
            acc = tl.dot(x, w, acc)
    if tl.float32 == DTYPE:
        acc = -acc
    else:
        acc -= mean[:, None] * tl.load(c + h_at, mask=h_at < H, other=0.0)[None, :]
    return rstd[:, None] * acc, beside


@triton.jit
def hidden_gradient(normed, ds, w2, c, e, h_at, k, H, K, TANH: tl.constexpr, PRECISION: tl.constexpr,
                    DTYPE: tl.constexpr):  # fmt: skip
    """(dH, gelu(h), dH . c, dH . (h - e)) of one block of hidden units; dH as rounded for the products."""
    inside = (k < K)[:, None] & (h_at < H)[None, :]
    w2t = tl.load(w2 + k[:, None] * H + h_at[None, :], mask=inside, other=0.0).to(DTYPE)
    h = normed + tl.load(e + h_at, mask=h_at < H, other=0.0)[None, :]
    dh = (tl.dot(ds.to(DTYPE), w2t, input_precision=PRECISION) * gelu_slope(h, TANH)).to(DTYPE)
    c_h = tl.load(c + h_at, mask=h_at < H, other=0.0)
    along_c = tl.sum(dh.to(tl.float32) * c_h[None, :], 1)
    return dh, gelu(h, TANH).to(DTYPE), along_c, tl.sum(dh.to(tl.float32) * normed, 1)


@triton.jit
def scores_of(
    x_rows, keep, mean, rstd, wg, c, e, w2, b2, other, D, H, K, WITH_OTHER: tl.constexpr,
    TANH: tl.constexpr, HAS_B2: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(scores, h - e of the first block of hidden units, x other^T); ONE = there is no second block.

    The forward's too: where the backward finds other bits, its exp(s - max) / sum is no softmax. In float32
    that takes one BLOCK_D in both, the block that is summed by itself.
    """
    k, h_at = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_H)
    normed, beside = normed_product(
        x_rows, keep, mean, rstd, wg, c, other, h_at, D, H, K, WITH_OTHER, PRECISION, DTYPE, BLOCK_N,
        BLOCK_D, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    e_h = tl.load(e + h_at, mask=h_at < H, other=0.0)
    s = second_product(normed + e_h[None, :], w2, h_at, k, H, K, TANH, PRECISION, DTYPE)
    if not ONE:
        for h0 in range(BLOCK_H, H, BLOCK_H):
            at = h0 + tl.arange(0, BLOCK_H)
            more, _ = normed_product(
                x_rows, keep, mean, rstd, wg, c, other, at, D, H, K, False, PRECISION, DTYPE, BLOCK_N,
                BLOCK_D, BLOCK_H, BLOCK_K,
            )  # fmt: skip
            more += tl.load(e + at, mask=at < H, other=0.0)[None, :]
            s += second_product(more, w2, at, k, H, K, TANH, PRECISION, DTYPE)
    if HAS_B2:
        s += tl.load(b2 + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    return s, normed, beside


@triton.jit
def input_gradient(
    x_rows, keep, mean, rstd, normed, weights, ds, wg, c, e, w2, other, dh, g, dx, row, row_inside, D, H, K,
    WITH_OTHER: tl.constexpr, TANH: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From dS: writes dH and gelu(h) for the weight gradients, and, with xhat = (x - m) r,

        dx = r (dH Wg - (dH . c) / D - xhat (dH . (h - e)) / D)  [+ p other]

    Both means of the LayerNorm's backward are products as long as the hidden layer, not as long as the row.
    """
    d, k, h_at = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_H)
    along_c, along_h = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    dh_block = tl.zeros([BLOCK_N, BLOCK_H], DTYPE)
    for h0 in range(0, H, BLOCK_H):
        at = h0 + h_at
        if not ONE:
            normed, _ = normed_product(
                x_rows, keep, mean, rstd, wg, c, other, at, D, H, K, False, PRECISION, DTYPE, BLOCK_N,
                BLOCK_D, BLOCK_H, BLOCK_K,
            )  # fmt: skip
        dh_block, g_block, more_c, more_h = hidden_gradient(
            normed, ds, w2, c, e, at, k, H, K, TANH, PRECISION, DTYPE
        )  # fmt: skip
        along_c += more_c
        along_h += more_h
        inside = row_inside[:, None] & (at < H)[None, :]
        tl.store(dh + row[:, None] * H + at[None, :], dh_block, mask=inside)
        tl.store(g + row[:, None] * H + at[None, :], g_block, mask=inside)
    if not ONE:
        tl.debug_barrier()  # the rows of dH just written are read below by other threads
    before_copies()
    for d0 in range(0, D, BLOCK_D):
        in_d = d0 + d < D
        acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for h0 in range(0, H, BLOCK_H):
            at = h0 + h_at
            if not ONE:
                inside = row_inside[:, None] & (at < H)[None, :]
                dh_block = tl.load(dh + row[:, None] * H + at[None, :], mask=inside, other=0.0)
            w = tl.load(
                wg + at[:, None] * D + (d0 + d)[None, :], mask=(at < H)[:, None] & in_d[None, :], other=0.0
            )
            acc = tl.dot(dh_block, w, acc, input_precision=PRECISION)
        x = tl.load(x_rows[:, None] + (d0 + d)[None, :], mask=keep[:, None] & in_d[None, :], other=0.0)
        xhat = (x.to(tl.float32) - mean[:, None]) * rstd[:, None]
        out = rstd[:, None] * (acc - (along_c[:, None] + xhat * along_h[:, None]) / D)
        if WITH_OTHER:
            at_d = other + k[:, None] * D + (d0 + d)[None, :]
            o = tl.load(at_d, mask=(k < K)[:, None] & in_d[None, :], other=0.0)
            out = tl.dot(weights.to(DTYPE), o, out, input_precision=PRECISION)
        tl.store(
            dx + row[:, None] * D + (d0 + d)[None, :], out.to(DTYPE), mask=row_inside[:, None] & in_d[None, :]
        )


def fold(
    x: Tensor, w1: Tensor, b1: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Wg [H,D] in x's dtype, c and e [H] in float32."""
    arguments, options = fold_arguments(x, w1, b1, norm_weight, norm_bias)
    launch(prepare_kernel, (w1.shape[0],), x, *arguments, w1.shape[1], **options)
    return arguments[4:]


def fold_arguments(
    x: Tensor, w1: Tensor, b1: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `fold_row` takes, Wg, c and e last, and its compile-time arguments."""
    h, d = w1.shape
    wg, c, e = (
        x.new_empty((h, d)),
        x.new_empty((h,), dtype=torch.float32),
        x.new_empty((h,), dtype=torch.float32),
    )
    read = w1.contiguous(), contiguous(b1, x), contiguous(norm_weight, x), contiguous(norm_bias, x)
    has = {
        "HAS_B1": b1 is not None,
        "HAS_WEIGHT": norm_weight is not None,
        "HAS_BIAS": norm_bias is not None,
    }
    return (*read, wg, c, e), {**has, "BLOCK_D": 1024, "num_warps": 4}


def contiguous(parameter: Tensor | None, x: Tensor) -> Tensor:
    """A parameter as the kernels read it; where there is none, x, which they then do not read."""
    return x if parameter is None else parameter.contiguous()


def hidden_blocks(h: int) -> dict[str, Any]:
    """BLOCK_H and ONE of the kernels above."""
    block = padded(h, at_most=64)
    return {"BLOCK_H": block, "ONE": h <= block}
