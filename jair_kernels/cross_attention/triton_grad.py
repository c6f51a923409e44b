"""The backward of fused_cross_attention in Triton: dk and dv by a program for each block of keys, dq by one
for each tile of queries and segment of the keys. Scores are computed again; nothing is summed by atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import Config, ceil_div, configured, launch, padded, rows_contiguous, symbolic
from jair_kernels._triton_pool import mask_arguments, split_tokens, tokens_kept
from jair_kernels.cross_attention.triton import (
    arguments,
    load_bounds,
    load_keys,
    load_rows,
    options,
    scores_of,
)

Tensor = torch.Tensor


@triton.jit
def delta_kernel(o, dout, delta, L, D, H, o_b, o_l, o_h, g_b, g_l, g_h, BLOCK_D: tl.constexpr):
    """delta[b,h,l] = o . dout, the mean of dP under the weights of a query."""
    row = tl.program_id(0).to(tl.int64)
    b, h, l = row // (H * L), row // L % H, row % L
    d = tl.arange(0, BLOCK_D)
    left = tl.load(o + b * o_b + l * o_l + h * o_h + d, mask=d < D, other=0.0).to(tl.float32)
    right = tl.load(dout + b * g_b + l * g_l + h * g_h + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(delta + row, tl.sum(left * right, 0))


@triton.jit
def weights_and_gradient(
    rows, grads, top, inverse, delta, kn, vn, n, keep, broken, start, end, scale, ONE, HAS_RANGE:
        tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """P and dS = P (dP - delta) of a tile. Where it holds all keys (ONE) delta is summed from these very P
    and dP, which is exact for a single key.
    """
    s, inside = scores_of(rows, kn, n, keep, broken, start, end, scale, HAS_RANGE, PRECISION)
    p = tl.where(inside & (inverse != 0)[:, None], tl.exp(s - top[:, None]) * inverse[:, None], 0.0)
    dp = tl.dot(grads, tl.trans(vn), input_precision=PRECISION)
    if ONE:
        delta = tl.sum(p * dp, 1)
    return p, tl.where(p == 0, 0.0, p * (dp - delta[:, None]))


@triton.jit
def load_statistics(stats, delta, image, m, live, M):
    """Largest score (0 for a row without keys), inverse sum and delta of rows."""
    row = image * M + m
    inverse = tl.load(stats + 2 * row + 1, mask=live, other=0.0)
    top = tl.load(stats + 2 * row, mask=live & (inverse != 0), other=0.0)
    return top, inverse, tl.load(delta + row, mask=live & (inverse != 0), other=0.0)


@triton.jit
def keys_kernel(
    dout, q, k, v, mask, kv_range, stats, delta, dkv, scale, L, N, D, R, G, q_b, q_l, q_h, k_b, k_n, k_h,
    v_b, v_n,
    v_h, m_b, m_n, r_b, r_l, r_e, g_b, g_l, g_h, to_n, dk_at, dv_at, HAS_MASK: tl.constexpr,
    HAS_RANGE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dv = P^T dout and dk = scale dS^T q of one block of keys, over all rows."""
    M = R * L
    blocks = tl.cdiv(N, BLOCK_N)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    b, g = image // G, image % G
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    kn, vn, broken = load_keys(k, v, b, g, n, keep, D, k_b, k_n, k_h, v_b, v_n, v_h, d, HAS_RANGE)
    dk, dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for m0 in range(0, M, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        live = m < M
        top, inverse, inner = load_statistics(stats, delta, image, m, live, M)
        start, end = tl.zeros([BLOCK_M], tl.int32), tl.zeros([BLOCK_M], tl.int32)
        if HAS_RANGE:
            start, end = load_bounds(kv_range, b, m, live, L, N, r_b, r_l, r_e)
        live = live & (inverse != 0)  # what a row without keys holds may be NaN
        rows = load_rows(q, b, g, m, live, L, D, R, q_b, q_l, q_h, d)
        grads = load_rows(dout, b, g, m, live, L, D, R, g_b, g_l, g_h, d)
        p, ds = weights_and_gradient(
            rows, grads, top, inverse, inner, kn, vn, n, keep, broken, start, end, scale, N <= BLOCK_N,
            HAS_RANGE, PRECISION,
        )  # fmt: skip
        dv = tl.dot(tl.trans(p).to(grads.dtype), grads, dv, input_precision=PRECISION)
        dk = tl.dot(tl.trans(ds).to(rows.dtype), rows, dk, input_precision=PRECISION)
    to = dkv + (b * N + n)[:, None] * to_n + g * D + d[None, :]
    inside = (n < N)[:, None] & (d < D)[None, :]
    tl.store(to + dk_at, (dk * scale).to(dkv.dtype.element_ty), mask=inside)
    tl.store(to + dv_at, dv.to(dkv.dtype.element_ty), mask=inside)


@triton.jit
def queries_kernel(
    dout, q, k, v, mask, kv_range, stats, delta, dq, scale, L, N, D, R, G, q_b, q_l, q_h, k_b, k_n, k_h, v_b,
    v_n,
    v_h, m_b, m_n, r_b, r_l, r_e, g_b, g_l, g_h, to_l, splits, segment, HAS_MASK: tl.constexpr,
    HAS_RANGE: tl.constexpr, MERGED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq = scale dS k of one tile of rows, over one segment of keys. MERGED: [image, split, row], summed
    later.
    """
    M = R * L
    tiles = tl.cdiv(M, BLOCK_M)
    place = (tl.program_id(0) // tiles).to(tl.int64)
    image, split = place // splits, place % splits
    b, g = image // G, image % G
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    d, live = tl.arange(0, BLOCK_D), m < M
    top, inverse, inner = load_statistics(stats, delta, image, m, live, M)
    start, end = tl.zeros([BLOCK_M], tl.int32), tl.zeros([BLOCK_M], tl.int32)
    if HAS_RANGE:
        start, end = load_bounds(kv_range, b, m, live, L, N, r_b, r_l, r_e)
    attending = live & (inverse != 0)
    rows = load_rows(q, b, g, m, attending, L, D, R, q_b, q_l, q_h, d)
    grads = load_rows(dout, b, g, m, attending, L, D, R, g_b, g_l, g_h, d)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = split * segment
    last = tl.minimum(first + segment, N)
    for n0 in range(first, last, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
        keep = tokens_kept(mask, b, n, last, m_b, m_n, HAS_MASK)
        kn, vn, broken = load_keys(k, v, b, g, n, keep, D, k_b, k_n, k_h, v_b, v_n, v_h, d, HAS_RANGE)
        _, ds = weights_and_gradient(
            rows, grads, top, inverse, inner, kn, vn, n, keep, broken, start, end, scale, N <= BLOCK_N,
            HAS_RANGE, PRECISION,
        )  # fmt: skip
        acc = tl.dot(ds.to(kn.dtype), kn, acc, input_precision=PRECISION)
    to = (place * M + m) * D
    if not MERGED:
        to = (b * L + m % L) * to_l + (g * R + m // L) * D
    inside = live[:, None] & (d < D)[None, :]
    tl.store(dq + to[:, None] + d[None, :], (acc * scale).to(dq.dtype.element_ty), mask=inside)


@triton.jit
def sum_kernel(parts, dq, L, D, R, G, to_l, splits, BLOCK_D: tl.constexpr):
    """One row of dq from its segments, in the order of the keys."""
    row = tl.program_id(0).to(tl.int64)
    M = R * L
    image, m = row // M, row % M
    b, g = image // G, image % G
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for i in range(splits):
        acc += tl.load(parts + ((image * splits + i) * M + m) * D + d, mask=d < D, other=0.0)
    to = (b * L + m % L) * to_l + (g * R + m // L) * D
    tl.store(dq + to + d, acc.to(dq.dtype.element_ty), mask=d < D)


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kv_range: Tensor | None,
    o: Tensor,
    stats: Tensor,
    scale: float,
    packed: bool,
) -> tuple[Tensor, Tensor]:
    """dq [B,L,h,d] and [dk, dv] [B,N,2,h_kv,d], or packed [dq, dk, dv] [B,N,3,h,d] and an empty tensor."""
    q, k, v, dout, stats = (rows_contiguous(t) for t in (q, k, v, dout, stats))
    b, l, h, d = q.shape
    n, g = k.shape[1:3]
    r = h // g
    dq = q.new_empty((b, n, 3, h, d) if packed else (b, l, h, d))
    dkv = q.new_empty((0,) if packed else (b, n, 2, g, d))
    if not symbolic(b) and b == 0:
        return dq, dkv
    delta = q.new_empty((b, h, l), dtype=torch.float32)
    stats = stats.contiguous()
    launch(
        delta_kernel, (b * h * l,), q, o, dout, delta, l, d, h, *o.stride()[:3], *dout.stride()[:3],
        BLOCK_D=padded(d), num_warps=1,
    )  # fmt: skip
    parts = 3 if packed else 2

    def run(config: Config) -> tuple[Tensor, Tensor]:
        meta = options(q, mask, kv_range, config)
        given = (mask_arguments(mask, q)[0], q if kv_range is None else kv_range)
        inputs: tuple[Any, ...] = (dout, q, k, v, *given)
        sizes = (scale, l, n, d, r, g, *arguments(q, k, v, mask, kv_range), *dout.stride()[:3])
        launch(
            keys_kernel, (b * g * ceil_div(n, config["BLOCK_N"]),), q, *inputs, stats, delta, dq if packed
            else dkv, *sizes, parts * g * d, (parts - 2) * g * d, (parts - 1) * g * d, **meta,
        )  # fmt: skip
        tiles = ceil_div(r * l, config["BLOCK_M"])
        splits, segment = split_tokens(b * g, n, tiles, config)
        merged = symbolic(splits) or splits > 1
        partial = q.new_empty((b, g, splits, r * l, d), dtype=torch.float32) if merged else dq
        to_l = (3 if packed else 1) * h * d
        launch(
            queries_kernel, (b * g * splits * tiles,), q, *inputs, stats, delta, partial, *sizes, to_l,
            splits, segment, MERGED=merged, **meta,
        )  # fmt: skip
        if merged:
            launch(
                sum_kernel,
                (b * h * l,),
                q,
                partial,
                dq,
                l,
                d,
                r,
                g,
                to_l,
                splits,
                BLOCK_D=padded(d),
                num_warps=1,
            )
        return dq, dkv

    result: tuple[Tensor, Tensor] = configured("cross_attention_backward", q, d, run)
    return result
