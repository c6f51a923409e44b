"""The backward of fused_cross_attention for few queries, in Triton: one program holds all queries that share
a head of the keys, so that it reads a segment of keys once, computes their scores once, and has dk and dv
complete. dq is summed over its keys in registers, and over segments, if there are several, by `sum_kernel`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import Config, configured, launch, padded, symbolic, table
from jair_kernels._triton_loops import before_copies
from jair_kernels._triton_pool import mask_arguments, split_tokens
from jair_kernels.cross_attention.triton import (
    arguments,
    keys_kept,
    load_keys,
    load_rows,
    mean_key,
    within,
)
from jair_kernels.cross_attention.triton_grad import (
    Gradients,
    add_segments,
    gradient_options,
    inner_products,
    load_statistics,
    store_keys,
    weights_and_gradient,
)

Tensor = torch.Tensor


@triton.jit
def once_kernel(
    dout, q, k, v, mask, o, stats, dq, dkv, scale, L, N, R, G, q_b, q_l, q_h, k_b, k_n, k_h, v_b,
    v_n, v_h, m_b, m_n, g_b, g_l, g_h, o_b, o_l, o_h, to_n, dk_at, dv_at, to_l, splits,
    segment, D: tl.constexpr, HAS_MASK: tl.constexpr, ONE: tl.constexpr,
    CENTRED: tl.constexpr, MERGED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dv = P^T dout, dk = scale dS^T q and dq = scale dS k of all rows, R L <= BLOCK_M, over one segment of
    keys. MERGED: dq [image, split, row], summed later.
    """
    M = R * L
    place = tl.program_id(0).to(tl.int64)
    image, split = place // splits, place % splits
    b, g = image // G, image % G
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    live = m < M
    top, inverse = load_statistics(stats, image, m, live, M)
    everywhere = tl.zeros([BLOCK_M], tl.int32)  # bounds that are not looked at
    attending = live & (inverse != 0)  # what a row without keys holds may be NaN
    rows = load_rows(q, b, g, m, attending, L, D, R, q_b, q_l, q_h, d)
    grads = load_rows(dout, b, g, m, attending, L, D, R, g_b, g_l, g_h, d)
    delta = inner_products(load_rows(o, b, g, m, attending, L, D, R, o_b, o_l, o_h, d), grads)
    acc, left = tl.zeros([BLOCK_M, BLOCK_D], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    k, v, mask = k + b * k_b + g * k_h, v + b * v_b + g * v_h, mask + b * m_b
    dkv += b * N * to_n + g * D
    first = split * segment
    last = tl.minimum(first + segment, N)
    before_copies()
    for n0 in range(first, last, BLOCK_N):
        keep = keys_kept(mask, n0, last, m_n, HAS_MASK, BLOCK_N)
        kn, vn, broken = load_keys(k, v, n0, keep, D, k_n, v_n, d, False)
        p, ds = weights_and_gradient(
            rows, grads, top, inverse, delta, kn, vn, n0, keep, broken, everywhere, everywhere, scale, N, ONE,
            False, PRECISION,
        )  # fmt: skip
        dv = tl.dot(tl.trans(grads), p.to(grads.dtype), input_precision=PRECISION)
        store_keys(dkv + dv_at, tl.trans(dv), n0, last, keep, to_n, d, D, HAS_MASK)
        ds = ds.to(rows.dtype)
        dk = tl.dot(tl.trans(rows), ds, input_precision=PRECISION)
        store_keys(dkv + dk_at, tl.trans(dk) * scale, n0, last, keep, to_n, d, D, HAS_MASK)
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


def fits(q: Tensor, k: Tensor) -> bool:
    """Whether the queries of all heads that share one of k are known to be few enough for one tile."""
    l, h, d = q.shape[1:]
    if symbolic(l, h, k.shape[2]):
        return False
    limit = table()[f"cross_attention_once/{8 * q.element_size()}/{padded(d)}"]["BLOCK_M"]
    return bool(h // k.shape[2] * l <= limit)


def launch_once(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, o: Tensor, stats: Tensor,
    scale: float, to: Gradients,
) -> None:  # fmt: skip
    """The one kernel, where `fits`; without ranges, see `narrowed`."""
    b, l, h, d = q.shape
    n, g = k.shape[1:3]
    r = h // g

    def run(config: Config) -> None:
        meta: dict[str, Any] = gradient_options(q, k, mask, None, {**config, "BLOCK_M": padded(r * l)})
        del meta["HAS_RANGE"]
        splits, segment = split_tokens(b * g, n, 1, config)
        partial, merged = to.partial(q, g, splits)
        launch(
            once_kernel, (b * g * splits,), q, dout, q, k, v, mask_arguments(mask, q)[0], o, stats, partial,
            to.keys, scale, l, n, r, g, *arguments(q, k, v, mask, None)[:-3], *dout.stride()[:3],
            *o.stride()[:3], *to.places, to.to_l, splits, segment, MERGED=merged, **meta,
        )  # fmt: skip
        if merged:
            add_segments(partial, to.dq, q, to.to_l)

    configured("cross_attention_once", q, d, run)
