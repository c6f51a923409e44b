"""The backward of fused_cross_attention in Triton: dq by a program for each tile of queries and segment of
the keys, dk and dv by one for each block of keys. Scores are computed again; nothing is summed by atomics.
Few queries are left to `triton_once`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from jair_kernels._triton import Config, ceil_div, configured, launch, symbolic
from jair_kernels._triton_loops import before_copies
from jair_kernels._triton_pool import mask_arguments, split_tokens
from jair_kernels.cross_attention.triton import (
    arguments,
    exponential,
    keys_kept,
    load_bounds,
    load_keys,
    load_rows,
    mean_key,
    narrowed,
    options,
    row_options,
    scores_of,
    within,
)

Tensor = torch.Tensor


@triton.jit
def of_all_keys(p, dp):
    """P of all keys by its own sum, and delta = sum P dP: exact for a single key, however s was rounded."""
    total = tl.sum(p, 1)
    total = tl.broadcast_to(tl.where(total == 0, 1.0, total)[:, None], p.shape)
    p = tl.where(p == 0, 0.0, tl.div_rn(p, total))
    return p, tl.sum(p * dp, 1)


@triton.jit
def weights_and_gradient(
    rows, grads, top, inverse, delta, kn, vn, n0, keep, broken, start, end, scale, N, ONE: tl.constexpr,
    HAS_RANGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P and dS = P (dP - delta) of a tile. Where it holds all keys (ONE is 1; or 2, if only a launch knows N)
    they are `of_all_keys`. Rows without keys have to be 0 in `rows` and `grads`. A query that is not finite
    leaves NaN in masked keys, if there are no ranges.
    """
    s = scores_of(rows, kn, n0, keep, broken, start, end, scale, HAS_RANGE, PRECISION)
    p = exponential(s - top[:, None]) * inverse[:, None]
    if HAS_RANGE:
        p = tl.where((s == float("-inf")) | (inverse == 0)[:, None], 0.0, p)
    dp = tl.dot(grads, tl.trans(vn), input_precision=PRECISION)
    if ONE == 1:
        p, delta = of_all_keys(p, dp)
    elif ONE == 2:  # noqa: SIM102 - the one is for the compiler, the other for the kernel
        if keep.shape[0] >= N:
            p, delta = of_all_keys(p, dp)
    ds = p * (dp - delta[:, None])
    if HAS_RANGE:
        ds = tl.where(p == 0, 0.0, ds)
    return p, ds


@triton.jit
def load_statistics(stats, image, m, live, M):
    """Largest score (0 for a row without keys) and inverse sum of rows."""
    row = image * M + m
    inverse = tl.load(stats + 2 * row + 1, mask=live, other=0.0)
    return tl.load(stats + 2 * row, mask=live & (inverse != 0), other=0.0), inverse


@triton.jit
def inner_products(x, y):
    """Row sums of x y in float32: delta = o . dout, the mean of dP under the weights of a query."""
    return tl.sum(x.to(tl.float32) * y.to(tl.float32), 1)


@triton.jit
def store_keys(to, rows, n0, end, keep, to_n, d, D: tl.constexpr, HAS_MASK: tl.constexpr):
    """The block at n0 of dk or dv of one head, of its keys below end; 0 where masked, whatever the queries
    hold.
    """
    if HAS_MASK:
        rows = tl.where(keep[:, None], rows, 0.0)
    step = tl.arange(0, keep.shape[0])
    at = to + (n0 + step.to(tl.int64))[:, None] * to_n + d[None, :]
    tl.store(at, rows.to(to.dtype.element_ty), mask=within(step < (end - n0).to(tl.int32), d, D))


@triton.jit
def queries_kernel(
    dout, q, k, v, mask, kv_range, o, stats, delta, dq, scale, L, N, R, G, q_b, q_l, q_h, k_b, k_n, k_h,
    v_b, v_n, v_h, m_b, m_n, r_b, r_l, r_e, g_b, g_l, g_h, o_b, o_l, o_h, to_l, splits, segment,
    D: tl.constexpr, HAS_MASK: tl.constexpr, HAS_RANGE: tl.constexpr, ONE: tl.constexpr,
    CENTRED: tl.constexpr, MERGED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq = scale dS k of one tile of rows, over one segment of keys, and delta for `keys_kernel`. MERGED:
    [image, split, row], summed later.
    """
    M = R * L
    tiles = tl.cdiv(M, BLOCK_M)
    place = (tl.program_id(0) // tiles).to(tl.int64)
    image, split = place // splits, place % splits
    b, g = image // G, image % G
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    d, live = tl.arange(0, BLOCK_D), m < M
    top, inverse = load_statistics(stats, image, m, live, M)
    start, end = tl.zeros([BLOCK_M], tl.int32), tl.zeros([BLOCK_M], tl.int32)
    if HAS_RANGE:
        start, end = load_bounds(kv_range, b, m, live, L, N, r_b, r_l, r_e)
    attending = live & (inverse != 0)  # what a row without keys holds may be NaN
    rows = load_rows(q, b, g, m, attending, L, D, R, q_b, q_l, q_h, d)
    grads = load_rows(dout, b, g, m, attending, L, D, R, g_b, g_l, g_h, d)
    inner = inner_products(load_rows(o, b, g, m, attending, L, D, R, o_b, o_l, o_h, d), grads)
    if split == 0:
        tl.store(delta + image * M + m, inner, mask=live)
    acc, left = tl.zeros([BLOCK_M, BLOCK_D], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    k, v, mask = k + b * k_b + g * k_h, v + b * v_b + g * v_h, mask + b * m_b
    first = split * segment
    last = tl.minimum(first + segment, N)
    before_copies()
    for n0 in range(first, last, BLOCK_N):
        keep = keys_kept(mask, n0, last, m_n, HAS_MASK, BLOCK_N)
        kn, vn, broken = load_keys(k, v, n0, keep, D, k_n, v_n, d, HAS_RANGE)
        _, ds = weights_and_gradient(
            rows, grads, top, inverse, inner, kn, vn, n0, keep, broken, start, end, scale, N, ONE, HAS_RANGE,
            PRECISION,
        )  # fmt: skip
        ds = ds.to(kn.dtype)
        acc = tl.dot(ds, kn, acc, input_precision=PRECISION)
        if CENTRED:
            left += tl.sum(ds.to(tl.float32), 1)
    if CENTRED:
        acc -= left[:, None] * mean_key(k, mask, N, k_n, m_n, d, D, HAS_MASK, BLOCK_N)[None, :]
    to = (place * M + m) * D
    if not MERGED:
        to = (b * L + m % L) * to_l + (g * R + m // L) * D
    out = (acc * scale).to(dq.dtype.element_ty)
    tl.store(dq + to[:, None] + d[None, :], out, mask=within(live, d, D))


@triton.jit
def keys_kernel(
    dout, q, k, v, mask, kv_range, stats, delta, dkv, scale, L, N, R, G, q_b, q_l, q_h, k_b, k_n, k_h, v_b,
    v_n, v_h, m_b, m_n, r_b, r_l, r_e, g_b, g_l, g_h, to_n, dk_at, dv_at, D: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_RANGE: tl.constexpr, ONE: tl.constexpr, CENTRED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dv = P^T dout and dk = scale dS^T q of one block of keys, over all rows; without ranges both are summed
    transposed, where a block of 32 keys is wide enough for the matrix units.
    """
    M = R * L
    blocks = tl.cdiv(N, BLOCK_N)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    b, g = image // G, image % G
    n0 = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_N
    d = tl.arange(0, BLOCK_D)
    k, v, mask = k + b * k_b + g * k_h, v + b * v_b + g * v_h, mask + b * m_b
    keep = keys_kept(mask, n0, N, m_n, HAS_MASK, BLOCK_N)
    kn, vn, broken = load_keys(k, v, n0, keep, D, k_n, v_n, d, HAS_RANGE)
    dk = tl.zeros([BLOCK_N, BLOCK_D] if HAS_RANGE else [BLOCK_D, BLOCK_N], tl.float32)
    dv = tl.zeros_like(dk)
    before_copies()
    for m0 in range(0, M, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        live = m < M
        top, inverse = load_statistics(stats, image, m, live, M)
        start, end = tl.zeros([BLOCK_M], tl.int32), tl.zeros([BLOCK_M], tl.int32)
        if HAS_RANGE:
            start, end = load_bounds(kv_range, b, m, live, L, N, r_b, r_l, r_e)
        live = live & (inverse != 0)
        inner = tl.load(delta + image * M + m, mask=live, other=0.0)
        rows = load_rows(q, b, g, m, live, L, D, R, q_b, q_l, q_h, d)
        grads = load_rows(dout, b, g, m, live, L, D, R, g_b, g_l, g_h, d)
        p, ds = weights_and_gradient(
            rows, grads, top, inverse, inner, kn, vn, n0, keep, broken, start, end, scale, N, ONE, HAS_RANGE,
            PRECISION,
        )  # fmt: skip
        p, ds = p.to(grads.dtype), ds.to(rows.dtype)
        if HAS_RANGE:
            dv = tl.dot(tl.trans(p), grads, dv, input_precision=PRECISION)
            dk = tl.dot(tl.trans(ds), rows, dk, input_precision=PRECISION)
        else:
            dv = tl.dot(tl.trans(grads), p, dv, input_precision=PRECISION)
            dk = tl.dot(tl.trans(rows), ds, dk, input_precision=PRECISION)
    if not HAS_RANGE:
        dk, dv = tl.trans(dk), tl.trans(dv)
    dkv += b * N * to_n + g * D
    store_keys(dkv + dk_at, dk * scale, n0, N, keep, to_n, d, D, HAS_MASK)
    store_keys(dkv + dv_at, dv, n0, N, keep, to_n, d, D, HAS_MASK)


@triton.jit
def sum_kernel(
    parts, dq, rows, L, R, G, to_l, splits, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Rows of dq from their segments, in the order of the keys."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    M = R * L
    image, m = row // M, row % M
    b, g = image // G, image % G
    d = tl.arange(0, BLOCK_D)
    inside = within(row < rows, d, D)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for i in range(splits):
        at = ((image * splits + i) * M + m) * D
        acc += tl.load(parts + at[:, None] + d[None, :], mask=inside, other=0.0)
    to = dq + (b * L + m % L) * to_l + (g * R + m // L) * D
    tl.store(to[:, None] + d[None, :], acc.to(dq.dtype.element_ty), mask=inside)


def gradient_options(
    q: Tensor, k: Tensor, mask: Tensor | None, kv_range: Tensor | None, config: Config
) -> dict[str, Any]:
    """Compile-time arguments of the backward's kernels; for ONE see `weights_and_gradient`. If CENTRED, dq =
    scale dS (k - c), c a mean of keys: dS sums to 0 over them, but for the rounding of o and so of delta,
    which an offset that keys have in common would carry into dq. With ranges c may be of keys not attended.
    """
    n = k.shape[1]
    one = 2 if symbolic(n) else int(n <= config["BLOCK_N"])
    centred = q.element_size() == 2 and kv_range is None and one != 1
    return {**options(q, mask, kv_range, config), "ONE": one, "CENTRED": centred}


class Gradients(NamedTuple):
    """Where the gradients go: dk and dv lie in `keys`, which is dkv, or dq if all three are packed."""

    dq: Tensor
    dkv: Tensor
    keys: Tensor
    places: tuple[Any, ...]  # in keys the stride of a key, the starts of dk and dv
    to_l: Any  # in dq the stride of a query

    @staticmethod
    def empty(q: Tensor, k: Tensor, packed: bool) -> Gradients:
        """Uninitialised: see `backward` for the shapes."""
        b, l, h, d = q.shape
        n, g = k.shape[1:3]
        parts = 3 if packed else 2
        dq = q.new_empty((b, n, 3, h, d) if packed else (b, l, h, d))
        dkv = q.new_empty((0,) if packed else (b, n, 2, g, d))
        places = (parts * g * d, (parts - 2) * g * d, (parts - 1) * g * d)
        return Gradients(dq, dkv, dq if packed else dkv, places, (3 if packed else 1) * h * d)

    def partial(self, q: Tensor, g: int, splits: Any) -> tuple[Tensor, bool]:
        """Where segments write dq, [B,h_kv,splits,rows,d] if there are several, and whether there are."""
        if not symbolic(splits) and splits == 1:
            return self.dq, False
        b, l, h, d = q.shape
        return q.new_empty((b, g, splits, h // g * l, d), dtype=torch.float32), True


def add_segments(partial: Tensor, dq: Tensor, q: Tensor, to_l: Any) -> None:
    """dq, whose tokens are to_l apart, from the segments [B,h_kv,splits,rows,d]."""
    b, l, h, d = q.shape
    g, splits = partial.shape[1:3]
    meta = row_options(d)
    launch(
        sum_kernel, (ceil_div(b * h * l, meta["BLOCK_R"]),), q, partial, dq, b * h * l, l, h // g, g, to_l,
        splits, **meta,
    )  # fmt: skip


def launch_both(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_range: Tensor | None, o: Tensor,
    stats: Tensor, scale: float, to: Gradients,
) -> None:  # fmt: skip
    """Both kernels, for any number of queries."""
    b, l, h, d = q.shape
    n, g = k.shape[1:3]
    r = h // g
    delta = q.new_empty((b, h, l), dtype=torch.float32)

    def run(config: Config) -> None:
        config = narrowed(config, kv_range)
        meta = gradient_options(q, k, mask, kv_range, config)
        given = (mask_arguments(mask, q)[0], q if kv_range is None else kv_range)
        inputs: tuple[Any, ...] = (dout, q, k, v, *given)
        sizes = (scale, l, n, r, g, *arguments(q, k, v, mask, kv_range), *dout.stride()[:3])
        tiles = ceil_div(r * l, config["BLOCK_M"])
        splits, segment = split_tokens(b * g, n, tiles, config)
        partial, merged = to.partial(q, g, splits)
        launch(
            queries_kernel, (b * g * splits * tiles,), q, *inputs, o, stats, delta, partial, *sizes,
            *o.stride()[:3], to.to_l, splits, segment, MERGED=merged, **meta,
        )  # fmt: skip
        launch(
            keys_kernel, (b * g * ceil_div(n, config["BLOCK_N"]),), q, *inputs, stats, delta, to.keys, *sizes,
            *to.places, **meta,
        )  # fmt: skip
        if merged:
            add_segments(partial, to.dq, q, to.to_l)

    configured("cross_attention_backward", q, d, run)
