"""fused_cross_attention in Triton: one program attends from a tile of queries to a segment of the keys.

The queries of all heads that share a head of the keys are the rows m = j L + l of one matrix, j the head's
place in its group, so that a key is read once for all of them. Keys are split where programs would be too
few.
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
from jair_kernels._triton_loops import before_copies
from jair_kernels._triton_pool import mask_arguments, split_tokens

Tensor = torch.Tensor


@triton.jit
def within(keep, d, D: tl.constexpr):
    """Mask of the kept rows and the columns below D; the columns are left out where D fills the block."""
    inside = keep[:, None]
    if d.shape[0] != D:
        inside = inside & (d < D)[None, :]
    return inside


@triton.jit
def load_rows(x, b, g, m, keep, L, D: tl.constexpr, R, x_b, x_l, x_h, d):
    """Rows m of the queries of group g, or of what has their shape; 0 where not kept."""
    at = x + b * x_b + (m % L).to(tl.int64) * x_l + (g * R + m // L).to(tl.int64) * x_h
    return tl.load(at[:, None] + d[None, :], mask=within(keep, d, D), other=0.0)


@triton.jit
def load_bounds(kv_range, b, m, live, L, N, r_b, r_l, r_e):
    """The keys [start, end) that the rows m may attend."""
    at = kv_range + b * r_b + (m % L).to(tl.int64) * r_l
    start = tl.load(at, mask=live, other=0).to(tl.int64)
    end = tl.load(at + r_e, mask=live, other=0).to(tl.int64)
    return tl.maximum(start, 0).to(tl.int32), tl.minimum(end, N).to(tl.int32)


@triton.jit
def keys_kept(mask, n0, end, m_n, HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which keys of the block at n0 exist and are kept by the mask of the sample."""
    step = tl.arange(0, BLOCK_N)
    keep = step < (end - n0).to(tl.int32)
    if HAS_MASK:
        keep = keep & (tl.load(mask + n0 * m_n + step.to(tl.int64) * m_n, mask=keep, other=0) != 0)
    return keep


@triton.jit
def load_keys(k, v, n0, keep, D: tl.constexpr, k_n, v_n, d, HAS_RANGE: tl.constexpr):
    """The block of keys and values that starts at n0, of the head that k and v point to, and which of them
    are not finite. With ranges those are 0: a product with a weight of 0 would carry their NaN to queries
    that do not attend them.
    """
    inside = within(keep, d, D)
    n = n0 + tl.arange(0, keep.shape[0]).to(tl.int64)
    kn = tl.load(k + n[:, None] * k_n + d[None, :], mask=inside, other=0.0)
    vn = tl.load(v + n[:, None] * v_n + d[None, :], mask=inside, other=0.0)
    broken = n < 0
    if HAS_RANGE:
        wide_k, wide_v = kn.to(tl.float32), vn.to(tl.float32)
        broken = tl.sum((wide_k - wide_k) + (wide_v - wide_v), 1) != 0  # a sum of zeros or NaN
        kn, vn = tl.where(broken[:, None], 0.0, kn), tl.where(broken[:, None], 0.0, vn)
    return kn, vn, broken


@triton.jit
def mean_key(k, mask, N, k_n, m_n, d, D: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr):
    """Mean [D] of those of the first BLOCK_N keys that are kept, 0 if none is."""
    n = tl.arange(0, BLOCK_N)
    keep = n < N
    if HAS_MASK:
        keep = keep & (tl.load(mask + n.to(tl.int64) * m_n, mask=keep, other=0) != 0)
    at = k + n.to(tl.int64)[:, None] * k_n + d[None, :]
    total = tl.sum(tl.load(at, mask=within(keep, d, D), other=0.0).to(tl.float32), 0)
    return total / tl.maximum(tl.sum(keep.to(tl.float32), 0), 1.0)


@triton.jit
def exponential(x):
    """e^x by the hardware's power of two, without the detour for results below 2^-126, which are 0."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def scores_of(q, kn, n0, keep, broken, start, end, scale, HAS_RANGE: tl.constexpr, PRECISION: tl.constexpr):
    """Scores [rows, keys], -inf where a key is not attended, NaN where one is that is not finite."""
    # compiled code hands scale over in float64
    s = (tl.dot(q, tl.trans(kn), input_precision=PRECISION) * scale).to(tl.float32)
    if HAS_RANGE:
        key = (n0 + tl.arange(0, keep.shape[0])).to(tl.int32)[None, :]
        inside = keep[None, :] & (key >= start[:, None]) & (key < end[:, None])
        s = tl.where(inside, tl.where(broken[None, :], float("nan"), s), float("-inf"))
    else:  # one multiply-add; what is not kept was loaded as 0, and s is finite there
        s += tl.where(keep, 0.0, float("-inf"))[None, :]
    return s


@triton.jit
def forward_kernel(
    q, k, v, mask, kv_range, o, stats, scale, L, N, R, G, q_b, q_l, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    m_b, m_n, r_b, r_l, r_e, splits, segment, D: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_RANGE: tl.constexpr, MERGED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of rows, one segment of keys. MERGED: outputs [image, split, row] of the segment alone."""
    M = R * L
    tiles = tl.cdiv(M, BLOCK_M)
    place = (tl.program_id(0) // tiles).to(tl.int64)
    image, split = place // splits, place % splits
    b, g = image // G, image % G
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    d, live = tl.arange(0, BLOCK_D), m < M
    rows = load_rows(q, b, g, m, live, L, D, R, q_b, q_l, q_h, d)
    start, end = tl.zeros([BLOCK_M], tl.int32), tl.zeros([BLOCK_M], tl.int32)
    if HAS_RANGE:
        start, end = load_bounds(kv_range, b, m, live, L, N, r_b, r_l, r_e)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total, acc = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    k, v, mask = k + b * k_b + g * k_h, v + b * v_b + g * v_h, mask + b * m_b
    first = split * segment
    last = tl.minimum(first + segment, N)
    before_copies()
    for n0 in range(first, last, BLOCK_N):
        keep = keys_kept(mask, n0, last, m_n, HAS_MASK, BLOCK_N)
        kn, vn, broken = load_keys(k, v, n0, keep, D, k_n, v_n, d, HAS_RANGE)
        s = scores_of(rows, kn, n0, keep, broken, start, end, scale, HAS_RANGE, PRECISION)
        larger = tl.maximum(top, tl.max(s, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        p = exponential(s - base[:, None])
        decay = exponential(top - base)
        total = total * decay + tl.sum(p, 1)
        acc = tl.dot(p.to(vn.dtype), vn, acc * decay[:, None], input_precision=PRECISION)
        top = larger
    inverse = tl.where(total == 0, 0.0, 1 / tl.where(total == 0, 1.0, total))
    out = acc * inverse[:, None]
    if MERGED:
        row = place * M + m
        kept = total
    else:
        row = (b * G + g) * M + m
        kept = inverse
    tl.store(stats + 2 * row, top, mask=live)
    tl.store(stats + 2 * row + 1, kept, mask=live)
    to = row * D
    if not MERGED:
        to = ((b * L + m % L) * (G * R) + g * R + m // L) * D
    tl.store(o + to[:, None] + d[None, :], out.to(o.dtype.element_ty), mask=within(live, d, D))


@triton.jit
def merge_kernel(
    parts, part_stats, o, stats, rows, L, R, G, splits, D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows from their segments, in the order of the keys; each counts with its sum of exponentials."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    M = R * L
    image, m = row // M, row % M
    b, g = image // G, image % G
    d, live = tl.arange(0, BLOCK_D), row < rows
    top, total = tl.full([BLOCK_R], float("-inf"), tl.float32), tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for i in range(splits):
        at = (image * splits + i) * M + m
        part = tl.load(parts + (at * D)[:, None] + d[None, :], mask=within(live, d, D), other=0.0)
        here = tl.load(part_stats + 2 * at, mask=live, other=float("-inf"))
        weight = tl.load(part_stats + 2 * at + 1, mask=live, other=0.0)
        larger = tl.maximum(top, here)
        base = tl.where(larger == float("-inf"), 0.0, larger)
        old, new = exponential(top - base), weight * exponential(here - base)
        acc = acc * old[:, None] + part * new[:, None]
        total = total * old + new
        top = larger
    inverse = tl.where(total == 0, 0.0, 1 / tl.where(total == 0, 1.0, total))
    tl.store(stats + 2 * row, top, mask=live)
    tl.store(stats + 2 * row + 1, inverse, mask=live)
    to = o + ((b * L + m % L) * (G * R) + g * R + m // L) * D
    out = (acc * inverse[:, None]).to(o.dtype.element_ty)
    tl.store(to[:, None] + d[None, :], out, mask=within(live, d, D))


def _grouped(q: Tensor, k: Tensor) -> tuple[Any, ...]:
    """L, N, D, R = heads of q for one of k, G = heads of k."""
    return q.shape[1], k.shape[1], q.shape[3], q.shape[2] // k.shape[2], k.shape[2]


def arguments(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_range: Tensor | None
) -> tuple[Any, ...]:
    """Strides of what a kernel reads."""
    ranges = (0, 0, 0) if kv_range is None else kv_range.stride()
    return (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *mask_arguments(mask, q)[1:], *ranges)


def options(q: Tensor, mask: Tensor | None, kv_range: Tensor | None, config: Config) -> dict[str, Any]:
    """Compile-time arguments of the kernels."""
    blocks = {name: value for name, value in config.items() if name != "SEGMENT"}
    masks = {"HAS_MASK": mask is not None, "HAS_RANGE": kv_range is not None}
    width = {"D": int(q.shape[3]), "BLOCK_D": padded(q.shape[3])}
    return {**blocks, **masks, **width, "PRECISION": precision(q)}


def narrowed(config: Config, kv_range: Tensor | None) -> Config:
    """With ranges at most 32 queries a tile: at d = 64 in 16 bits tiles of 64, on Hopper's wide matrix units,
    missed the bound on errors. Why is not known; no GPU has run them since `before_copies`.
    """
    if kv_range is None:
        return config
    return {**config, "BLOCK_M": min(config["BLOCK_M"], 32), "num_stages": 2}


def row_options(d: int) -> dict[str, Any]:
    """Compile-time arguments of a kernel that joins rows of width d: several rows a program."""
    return {"D": int(d), "BLOCK_R": 1024 // padded(d), "BLOCK_D": padded(d), "num_warps": 4}


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_range: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The op's forward: o [B,L,h,d] and stats [B,h,L,2]."""
    q, k, v = (rows_contiguous(t) for t in (q, k, v))
    b, h = q.shape[0], q.shape[2]
    l, n, d, r, g = _grouped(q, k)
    o, stats = q.new_empty((b, l, h, d)), q.new_empty((b, h, l, 2), dtype=torch.float32)
    if not symbolic(b) and b == 0:
        return o, stats

    def run(config: Config) -> tuple[Tensor, Tensor]:
        config = narrowed(config, kv_range)
        tiles = ceil_div(r * l, config["BLOCK_M"])
        splits, segment = split_tokens(b * g, n, tiles, config)
        merged = symbolic(splits) or splits > 1
        parts, part_stats = o, stats
        if merged:
            parts = q.new_empty((b, g, splits, r * l, d), dtype=torch.float32)
            part_stats = q.new_empty((b, g, splits, r * l, 2), dtype=torch.float32)
        launch(
            forward_kernel, (b * g * splits * tiles,), q, q, k, v, mask_arguments(mask, q)[0],
            q if kv_range is None else kv_range, parts, part_stats, scale, l, n, r, g,
            *arguments(q, k, v, mask, kv_range), splits, segment, MERGED=merged,
            **options(q, mask, kv_range, config),
        )  # fmt: skip
        if merged:
            meta = row_options(d)
            launch(
                merge_kernel, (ceil_div(b * h * l, meta["BLOCK_R"]),), q, parts, part_stats, o, stats,
                b * h * l, l, r, g, splits, **meta,
            )  # fmt: skip
        return o, stats

    result: tuple[Tensor, Tensor] = configured("cross_attention_forward", q, d, run)
    return result


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
    """The op's backward: dq [B,L,h,d] and [dk, dv] [B,N,2,h_kv,d], or packed [dq, dk, dv] [B,N,3,h,d] and an
    empty tensor. By the kernel of `triton_once` where it fits, else those of `triton_grad`; those take ranges
    too, see `narrowed`.
    """
    from jair_kernels.cross_attention import triton_grad, triton_once

    q, k, v, dout, o = (rows_contiguous(t) for t in (q, k, v, dout, o))
    stats, to = stats.contiguous(), triton_grad.Gradients.empty(q, k, packed)
    if not symbolic(q.shape[0]) and q.shape[0] == 0:
        return to.dq, to.dkv
    if kv_range is None and triton_once.fits(q, k):
        triton_once.launch_once(dout, q, k, v, mask, o, stats, scale, to)
    else:
        triton_grad.launch_both(dout, q, k, v, mask, kv_range, o, stats, scale, to)
    return to.dq, to.dkv
