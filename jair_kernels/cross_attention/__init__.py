"""Attention of few queries to many keys."""

from __future__ import annotations

import torch

from jair_kernels import _checks as check
from jair_kernels._backends import select
from jair_kernels.cross_attention.op import apply
from jair_kernels.cross_attention.reference import cross_attention


def fused_cross_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    kv_range: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention of L queries to N keys, for L << N and small batches too.

        y[b,h,l] = sum_n softmax_n(scale q[b,h,l] . k[b,g,n]) v[b,g,n],   g = h // (heads of q / heads of k)

    Args:
        q: queries [B,h,L,d], float32, bfloat16, float16 or float64; d up to 256, B may be 0. Any strides:
            a transposed [B,L,h,d] is read in place.
        k, v: keys and values [B,h_kv,N,d], same dtype and device; h a multiple of h_kv (grouped heads).
        mask: bool [B,N], True = keep: key padding. A masked key has no effect, not even a NaN in it.
        kv_range: int32 or int64 [B,L,2]: query l attends the keys [start, end) alone, clamped to [0, N] and
            intersected with the mask; start >= end: none. Media masks and ragged batches are ranges.
        scale: factor of the scores; None = d^-0.5.
        backend: "reference", "cpu", "triton"; None = the fastest that fits.

    Returns:
        y [B,h,L,d] in q's dtype, or in the autocast dtype. A query without keys gives zeros, and zero
            gradient; in kernels so does one all of whose scores are -inf, where the reference gives NaN.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, layout, option or backend.

    Source: Vaswani et al., "Attention Is All You Need" (1706.03762), eq. 1; Dao et al., "FlashAttention"
    (2205.14135), for what is kept and recomputed.
    """
    check.main_input("q", q, "B h L d", nonempty="h L d")
    autocast = check.autocast_dtype(q)
    b, h, l, d = q.shape
    check.head_width("q", d)
    check.operand("k", k, "B h_kv N d", (b, None, None, d), q, autocast is not None)
    h_kv, n = k.shape[1:3]
    check.divides("k", h_kv, "the heads of q", h)
    check.operand("v", v, "B h_kv N d", (b, h_kv, n, d), q, autocast is not None)
    check.key_mask("mask", mask, (b, n), q)
    check.key_range("kv_range", kv_range, (b, l), q)
    if scale is not None:
        check.positive("scale", scale)
    chosen = select("fused_cross_attention", backend, q, k, v, dtype=autocast)
    if chosen == "reference":
        return cross_attention(q, k, v, mask=mask, kv_range=kv_range, scale=scale)
    factor = d**-0.5 if scale is None else scale
    o: torch.Tensor = apply(q, k, v, mask, kv_range, factor, autocast or q.dtype, chosen)[0]
    return o.transpose(1, 2)
