"""Gradients of the score MLP's parameters in Triton: the third product of the backward.

    M = dH^T xhat      dw1 = M diag(norm_weight) + db1 norm_bias^T      db1 = sum dH
    dnorm_weight = sum_h w1 * M      dnorm_bias = w1^T db1      dw2 = dS^T gelu(h)      db2 = sum dS

Each program sums one range of tokens; the ranges are then added in their order, without atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from jair_kernels._autograd import like_parameter
from jair_kernels._triton import (
    Config,
    ceil_div,
    configured,
    contiguous,
    launch,
    padded,
    precision,
    symbolic,
)
from jair_kernels._triton_pool import mask_arguments

Tensor = torch.Tensor

# Programs of one pass over the tokens; fixed, so that the order of summation does not depend on the GPU.
_PROGRAMS = 256


@triton.jit
def weight_gradient_kernel(
    x, mask, stats, dh, g, ds, parts, N, T, D, H, K, x_b, x_n, m_b, m_n, rows, HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of one range of tokens, in one row: dH^T xhat [H,D], dS^T gelu(h) [K,H], sum dH [H], sum dS [K].

    xhat = (x - m) r is made in float32 and then rounded: no digits are lost in rows with |m| >> std, and
    nothing is left to correct for.
    """
    chunks = tl.cdiv(D, BLOCK_D) + 1
    part, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    h_at, k = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_K)
    begin = part.to(tl.int64) * rows
    end = tl.minimum(begin + rows, T)
    to = parts + part.to(tl.int64) * (H * D + K * H + H + K)
    if chunk < chunks - 1:
        d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        acc = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
        for t0 in range(begin, end, BLOCK_N):
            t = t0 + tl.arange(0, BLOCK_N).to(tl.int64)
            keep = t < end
            ahead = (t0 % N).to(tl.int32) + tl.arange(
                0, BLOCK_N
            )  # one 64-bit division a block, not one a token
            b, n = t0 // N + ahead // N, (ahead % N).to(tl.int64)
            if HAS_MASK:
                keep = keep & (tl.load(mask + b * m_b + n * m_n, mask=keep, other=0) != 0)
            at = (b * x_b + n * x_n)[:, None] + d[None, :]
            xt = tl.load(x + at, mask=keep[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
            mean = tl.load(stats + 2 * t, mask=keep, other=0.0)
            rstd = tl.load(stats + 2 * t + 1, mask=keep, other=0.0)
            xhat = ((xt - mean[:, None]) * rstd[:, None]).to(dh.dtype.element_ty)
            dht = tl.load(
                dh + t[None, :] * H + h_at[:, None], mask=keep[None, :] & (h_at < H)[:, None], other=0.0
            )
            acc = tl.dot(dht, xhat, acc, input_precision=PRECISION)
        tl.store(to + h_at[:, None] * D + d[None, :], acc, mask=(h_at < H)[:, None] & (d < D)[None, :])
    else:
        dw2 = tl.zeros([BLOCK_K, BLOCK_H], tl.float32)
        db1 = tl.zeros([BLOCK_H], tl.float32)
        for t0 in range(begin, end, BLOCK_N):
            t = t0 + tl.arange(0, BLOCK_N).to(tl.int64)
            wide = (t < end)[:, None] & (h_at < H)[None, :]
            gt = tl.load(g + t[:, None] * H + h_at[None, :], mask=wide, other=0.0)
            db1 += tl.sum(
                tl.load(dh + t[:, None] * H + h_at[None, :], mask=wide, other=0.0).to(tl.float32), 0
            )
            dst = tl.load(
                ds + t[None, :] * K + k[:, None], mask=(t < end)[None, :] & (k < K)[:, None], other=0.0
            )
            dw2 = tl.dot(dst, gt, dw2, input_precision=PRECISION)
        to += H * D
        tl.store(to + k[:, None] * H + h_at[None, :], dw2, mask=(k < K)[:, None] & (h_at < H)[None, :])
        tl.store(to + K * H + h_at, db1, mask=h_at < H)
        if tl.program_id(1) == 0:
            # dS once more: on Hopper a product reads it from shared memory while the next block is copied
            # there, and of what goes to registers as well Triton, to 3.9 at least, keeps a buffer too few
            # (its issue 6691; `tests.aot_triton` looks for that).
            db2 = tl.zeros([BLOCK_K], tl.float32)
            for t0 in range(begin, end, BLOCK_N):
                t = t0 + tl.arange(0, BLOCK_N).to(tl.int64)
                inside = (t < end)[:, None] & (k < K)[None, :]
                dst = tl.load(ds + t[:, None] * K + k[None, :], mask=inside, other=0.0)
                db2 += tl.sum(dst.to(tl.float32), 0)
            tl.store(to + K * H + H + k, db2, mask=k < K)


@triton.jit
def reduce_kernel(
    parts, dw2, db1, db2, splits, D, H, K, HAS_B1: tl.constexpr, HAS_B2: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The partial sums of `weight_gradient_kernel` added up, first to last, in place of the first."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = H * D + K * H + H + K
    acc = tl.zeros([BLOCK], tl.float32)
    at = parts + i
    for _ in range(splits):
        acc += tl.load(at, mask=i < size, other=0.0)
        at += size
    tl.store(parts + i, acc, mask=i < size)
    i -= H * D
    tl.store(dw2 + i, acc.to(dw2.dtype.element_ty), mask=(i >= 0) & (i < K * H))
    i -= K * H
    if HAS_B1:
        tl.store(db1 + i, acc.to(db1.dtype.element_ty), mask=(i >= 0) & (i < H))
    i -= H
    if HAS_B2:
        tl.store(db2 + i, acc.to(db2.dtype.element_ty), mask=(i >= 0) & (i < K))


@triton.jit
def finish_kernel(
    parts, w1, norm_weight, norm_bias, dw1, dnorm_weight, dnorm_bias, D, H, K, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dw1 = M diag(norm_weight) + db1 norm_bias^T, dnorm_weight = sum_h w1 * M, dnorm_bias = w1^T db1."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    db1 = parts + H * D + K * H
    weight, bias = tl.full([BLOCK_D], 1.0, tl.float32), tl.full([BLOCK_D], 0.0, tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(norm_weight + d, mask=d < D, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(norm_bias + d, mask=d < D, other=0.0).to(tl.float32)
    dweight, dbias = tl.full([BLOCK_D], 0.0, tl.float32), tl.full([BLOCK_D], 0.0, tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        inside = (h < H)[:, None] & (d < D)[None, :]
        at = h[:, None].to(tl.int64) * D + d[None, :]
        mt = tl.load(parts + at, mask=inside, other=0.0)
        w = tl.load(w1 + at, mask=inside, other=0.0).to(tl.float32)
        db1t = tl.load(db1 + h, mask=h < H, other=0.0)
        dw = mt * weight[None, :] + db1t[:, None] * bias[None, :]
        tl.store(dw1 + at, dw.to(dw1.dtype.element_ty), mask=inside)
        dweight += tl.sum(w * mt, 0)
        dbias += tl.sum(w * db1t[:, None], 0)
    if HAS_WEIGHT:
        tl.store(dnorm_weight + d, dweight.to(dnorm_weight.dtype.element_ty), mask=d < D)
    if HAS_BIAS:
        tl.store(dnorm_bias + d, dbias.to(dnorm_bias.dtype.element_ty), mask=d < D)


class Scratch(NamedTuple):
    """What the input gradient leaves for the parameters' gradients, in x's dtype."""

    dh: Tensor  # [B,N,H]
    g: Tensor  # [B,N,H], gelu(h)
    ds: Tensor  # [B,N,K]

    @staticmethod
    def empty(x: Tensor, h: int, k: int) -> Scratch:
        """Uninitialised memory for the tokens of x."""
        b, n, _ = x.shape
        return Scratch(x.new_empty((b, n, h)), x.new_empty((b, n, h)), x.new_empty((b, n, k)))


class Parameters(NamedTuple):
    """The parameters of the score MLP in the order of the ops' arguments."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    def new_gradients(self, x: Tensor) -> tuple[Tensor, ...]:
        """Uninitialised gradients in the types of their parameters; empty where one is absent."""
        return tuple(like_parameter(p, x) for p in self)

    def zero_gradients(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gradients of an empty batch."""
        return tuple(gradient.zero_() for gradient in self.new_gradients(x))


def parameter_gradients(
    x: Tensor, mask: Tensor | None, stats: Tensor, saved: Scratch, p: Parameters
) -> tuple[Tensor, ...]:
    """(dw1, db1, dw2, db2, dnorm_weight, dnorm_bias) like the parameters, empty where one is absent."""
    (b, n, d), (h, k) = x.shape, (p.w1.shape[0], p.w2.shape[0])
    tokens, size = b * n, h * d + k * h + h + k

    def run(config: Config) -> tuple[Tensor, int]:
        chunks, block_h = ceil_div(d, config["BLOCK_D"]) + 1, padded(h, at_most=64)
        splits = max(1, _PROGRAMS // (chunks * ceil_div(h, block_h)))
        if not symbolic(tokens):
            splits = min(splits, ceil_div(tokens, config["BLOCK_N"]))
        rows = config["BLOCK_N"] * ceil_div(ceil_div(tokens, splits), config["BLOCK_N"])
        parts = x.new_empty((splits, size), dtype=torch.float32)
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        launch(
            weight_gradient_kernel, (splits * chunks, ceil_div(h, block_h)), x, x, mask_or_x, stats, *saved,
            parts, n, tokens, d, h, k, *x.stride()[:2], *mask_strides, rows, HAS_MASK=mask is not None,
            PRECISION=precision(x), BLOCK_H=block_h, BLOCK_K=padded(k), **config,
        )  # fmt: skip
        return parts, splits

    parts, splits = configured("parameter_gradients", x, k, run)
    return gradients_of_sums(x, parts, splits, p)


def gradients_of_sums(x: Tensor, parts: Tensor, splits: int, p: Parameters) -> tuple[Tensor, ...]:
    """The parameters' gradients from the sums of ranges of tokens, one row for each as
    `weight_gradient_kernel` leaves them; the first is overwritten.
    """
    d, (k, h) = x.shape[2], p.w2.shape
    size = h * d + k * h + h + k
    dw1, db1, dw2, db2, dnorm_weight, dnorm_bias = gradients = p.new_gradients(x)
    launch(
        reduce_kernel, (ceil_div(size, 256),), x, parts, dw2, db1, db2, splits, d, h, k,
        HAS_B1=p.b1 is not None, HAS_B2=p.b2 is not None, BLOCK=256, num_warps=4,
    )  # fmt: skip
    launch(
        finish_kernel, (ceil_div(d, 32),), x, parts, p.w1.contiguous(), contiguous(p.norm_weight, x),
        contiguous(p.norm_bias, x), dw1, dnorm_weight, dnorm_bias, d, h, k,
        HAS_WEIGHT=p.norm_weight is not None, HAS_BIAS=p.norm_bias is not None, BLOCK_H=64, BLOCK_D=32,
        num_warps=4,
    )  # fmt: skip
    return gradients
