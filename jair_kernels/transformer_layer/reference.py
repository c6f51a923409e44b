"""Plain PyTorch; the definition of fused_transformer_layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jair_kernels._plain import heads, in_autocast_dtype, layer_norm, merge_heads, mlp, zero_masked
from jair_kernels.cross_attention.reference import cross_attention
from jair_kernels.transformer_layer.params import TransformerLayerParams

Tensor = torch.Tensor


def causal_range(x: Tensor) -> Tensor:
    """kv_range [B,N,2] of causal attention: token n attends [0, n + 1)."""
    b, n, _ = x.shape
    end = torch.arange(1, n + 1, device=x.device)
    return torch.stack([torch.zeros_like(end), end], dim=-1).expand(b, n, 2)


@in_autocast_dtype
def transformer_layer(
    x: Tensor,
    params: TransformerLayerParams,
    *,
    num_heads: int,
    mask: Tensor | None = None,
    causal: bool = False,
    eps: float = 1e-5,
    approximate: str = "none",
) -> Tensor:
    """x + Attn(LN x), then x + MLP(LN x); see `fused_transformer_layer`."""
    p = params
    x = zero_masked(x, mask)
    normed = x if p.norm1_weight is None else layer_norm(x, p.norm1_weight, p.norm1_bias, eps)
    q, k, v = (heads(part, num_heads) for part in F.linear(normed, p.wqkv, p.bqkv).chunk(3, dim=-1))
    attended = cross_attention(q, k, v, mask=mask, kv_range=causal_range(x) if causal else None)
    x = x + F.linear(merge_heads(attended), p.wo, p.bo)
    normed = x if p.norm2_weight is None else layer_norm(x, p.norm2_weight, p.norm2_bias, eps)
    return x + mlp(normed, p.w1, p.b1, p.w2, p.b2, approximate)
