"""Plain PyTorch; the definition of fused_cross_attention."""

from __future__ import annotations

import torch

from jair_kernels._plain import in_autocast_dtype

Tensor = torch.Tensor


def allowed_keys(mask: Tensor | None, kv_range: Tensor | None, n: int) -> Tensor | None:
    """bool [B,L or 1,N]: which keys a query attends; None = all."""
    allowed = None if mask is None else mask.unsqueeze(1)
    if kv_range is not None:
        key = torch.arange(n, device=kv_range.device)
        within = (key >= kv_range[..., :1]) & (key < kv_range[..., 1:])
        allowed = within if allowed is None else within & allowed
    return allowed


def attended_keys(mask: Tensor | None, kv_range: Tensor | None, n: int) -> Tensor | None:
    """bool [B,N]: which keys any query attends; None = all."""
    allowed = allowed_keys(mask, kv_range, n)
    return mask if kv_range is None or allowed is None else allowed.any(dim=1)


@in_autocast_dtype
def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    kv_range: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """y[b,h,l] = sum_n softmax_n(scale q[b,h,l] . k[b,h,n]) v[b,h,n]; see `fused_cross_attention`."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    allowed = allowed_keys(mask, kv_range, k.shape[2])
    broken = None
    if mask is not None:
        k, v = (t.masked_fill(~mask[:, None, :, None], 0) for t in (k, v))
    if kv_range is not None:
        # 0 NaN = NaN: queries that do not attend a key which is not finite must meet a 0 in the products.
        broken = ~(k.isfinite().all(-1) & v.isfinite().all(-1)).unsqueeze(2)
        k, v = (t.masked_fill(broken.mT, 0) for t in (k, v))
    scores = (q * (q.shape[3] ** -0.5 if scale is None else scale)) @ k.mT
    if allowed is None:
        return scores.softmax(dim=-1).to(v.dtype) @ v
    allowed = allowed.unsqueeze(1)
    if broken is not None:  # those that do attend it get NaN
        scores = scores.masked_fill(broken & allowed, float("nan"))
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1).to(v.dtype)
    return weights.masked_fill(~allowed, 0) @ v  # a row without keys is 0 / 0 until here
