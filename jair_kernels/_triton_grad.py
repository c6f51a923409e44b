"""Gradients of the score MLP's parameters in Triton: the third product of the backward.

    M = dH^T xhat      dw1 = M diag(norm_weight) + db1 norm_bias^T      db1 = sum dH
    dnorm_weight = sum_h w1 * M      dnorm_bias = w1^T db1      dw2 = dS^T gelu(h)      db2 = sum dS

Each program sums one range of tokens; the ranges are then added in their order, without atomics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from jair_kernels._triton import Config, ceil_div, configured, launch, padded, precision, symbolic
from jair_kernels._triton_mlp import contiguous
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
        db1, db2 = tl.zeros([BLOCK_H], tl.float32), tl.zeros([BLOCK_K], tl.float32)
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
            db2 += tl.sum(dst.to(tl.float32), 1)
            dw2 = tl.dot(dst, gt, dw2, input_precision=PRECISION)
        to += H * D
        tl.store(to + k[:, None] * H + h_at[None, :], dw2, mask=(k < K)[:, None] & (h_at < H)[None, :])
        tl.store(to + K * H + h_at, db1, mask=h_at < H)
        if tl.program_id(1) == 0:
            tl.store(to + K * H + H + k, db2, mask=k < K)


@triton.jit
def reduce_kernel(parts, m, dw2, db1, db2, splits, D, H, K, BLOCK: tl.constexpr):
    """The partial sums of `weight_gradient_kernel` added up, first to last."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = H * D + K * H + H + K
    acc = tl.zeros([BLOCK], tl.float32)
    at = parts + i
    for _ in range(splits):
        acc += tl.load(at, mask=i < size, other=0.0)
        at += size
    tl.store(m + i, acc, mask=i < H * D)
    i -= H * D
    tl.store(dw2 + i, acc, mask=(i >= 0) & (i < K * H))
    i -= K * H
    tl.store(db1 + i, acc, mask=(i >= 0) & (i < H))
    i -= H
    tl.store(db2 + i, acc, mask=(i >= 0) & (i < K))


@triton.jit
def finish_kernel(
    m, db1, w1, norm_weight, norm_bias, dw1, dnorm_weight, dnorm_bias, D, H, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dw1 = M diag(norm_weight) + db1 norm_bias^T, dnorm_weight = sum_h w1 * M, dnorm_bias = w1^T db1."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
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
        mt = tl.load(m + at, mask=inside, other=0.0)
        w = tl.load(w1 + at, mask=inside, other=0.0).to(tl.float32)
        db1t = tl.load(db1 + h, mask=h < H, other=0.0)
        tl.store(dw1 + at, mt * weight[None, :] + db1t[:, None] * bias[None, :], mask=inside)
        dweight += tl.sum(w * mt, 0)
        dbias += tl.sum(w * db1t[:, None], 0)
    if HAS_WEIGHT:
        tl.store(dnorm_weight + d, dweight, mask=d < D)
    if HAS_BIAS:
        tl.store(dnorm_bias + d, dbias, mask=d < D)


class Scratch(NamedTuple):
    """What the input gradient leaves for the parameters' gradients, in x's dtype."""

    dh: Tensor  # [B,N,H]
    g: Tensor  # [B,N,H], gelu(h)
    ds: Tensor  # [B,N,K]

    @staticmethod
    def empty(x: Tensor, h: int, k: int) -> Scratch:
        """Uninitialised memory for the tokens of x."""
        return Scratch(*(x.new_empty((*x.shape[:2], size)) for size in (h, h, k)))


class Parameters(NamedTuple):
    """The parameters of the score MLP in the order of the ops' arguments."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    def new_gradients(self, x: Tensor) -> list[Tensor]:
        """Uninitialised float32 gradients; empty for an absent parameter."""
        return [x.new_empty((0,) if p is None else p.shape, dtype=torch.float32) for p in self]

    def zero_gradients(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gradients of an empty batch."""
        return self.cast(*(gradient.zero_() for gradient in self.new_gradients(x)))

    def cast(self, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Gradients in the types of their parameters."""
        pairs = zip(gradients, self, strict=True)
        return tuple(gradient if p is None else gradient.to(p.dtype) for gradient, p in pairs)


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
    m, db1_all, db2_all = (x.new_empty(shape, dtype=torch.float32) for shape in ((h, d), (h,), (k,)))
    dw1, db1, dw2, db2, dnorm_weight, dnorm_bias = p.new_gradients(x)
    db1 = db1_all if p.b1 is not None else db1
    db2 = db2_all if p.b2 is not None else db2
    launch(
        reduce_kernel, (ceil_div(size, 256),), x, parts, m, dw2, db1_all, db2_all, splits, d, h, k,
        BLOCK=256, num_warps=4,
    )  # fmt: skip
    has: dict[str, Any] = {"HAS_WEIGHT": p.norm_weight is not None, "HAS_BIAS": p.norm_bias is not None}
    launch(
        finish_kernel, (ceil_div(d, 32),), x, m, db1_all, p.w1.contiguous(), contiguous(p.norm_weight, x),
        contiguous(p.norm_bias, x), dw1, dnorm_weight, dnorm_bias, d, h, **has, BLOCK_H=64, BLOCK_D=32,
        num_warps=4,
    )  # fmt: skip
    return p.cast(dw1, db1, dw2, db2, dnorm_weight, dnorm_bias)
