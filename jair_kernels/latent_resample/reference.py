"""Plain PyTorch; the definition of fused_latent_resample."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jair_kernels._plain import heads, in_autocast_dtype, layer_norm, merge_heads, zero_masked
from jair_kernels.cross_attention.reference import cross_attention

Tensor = torch.Tensor
Norm = tuple[Tensor, Tensor | None]


@in_autocast_dtype
def latent_resample(
    x: Tensor,
    latents: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    bq: Tensor | None = None,
    bk: Tensor | None = None,
    bv: Tensor | None = None,
    bo: Tensor | None = None,
    x_norm: Norm | None = None,
    latents_norm: Norm | None = None,
    attend_latents: bool = False,
    mask: Tensor | None = None,
    eps: float = 1e-5,
    method: str = "auto",
) -> Tensor:
    """wo Attn(latents, x) + bo, as the projected form; see `fused_latent_resample`."""
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    b = x.shape[0]
    keys = zero_masked(x, mask)
    if x_norm is not None:
        keys = layer_norm(keys, *x_norm, eps)
    if latents_norm is not None:
        latents = layer_norm(latents, *latents_norm, eps)
    q = F.linear(latents, wq, bq).expand(b, latents.shape[-2], wq.shape[0])  # shared ones are projected once
    if attend_latents:
        keys = torch.cat([keys, latents.expand(b, *latents.shape[-2:])], dim=1)
        mask = None if mask is None else F.pad(mask, (0, latents.shape[-2]), value=True)
    q = heads(q, num_heads)
    k, v = heads(F.linear(keys, wk, bk), kv_heads), heads(F.linear(keys, wv, bv), kv_heads)
    return F.linear(merge_heads(cross_attention(q, k, v, mask=mask)), wo, bo)
