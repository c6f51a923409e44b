"""Plain PyTorch; the definition of fused_gated_fusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jair_kernels._plain import heads, in_autocast_dtype, layer_norm, merge_heads, mlp, zero_masked
from jair_kernels.cross_attention.reference import attended_keys, cross_attention
from jair_kernels.gated_fusion.params import GatedFusionParams

Tensor = torch.Tensor


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else layer_norm(x, weight, bias, eps)


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else gate.tanh() * x


@in_autocast_dtype
def gated_fusion(
    t: Tensor,
    f: Tensor,
    params: GatedFusionParams,
    *,
    num_heads: int,
    form: str = "jair",
    mask: Tensor | None = None,
    kv_range: Tensor | None = None,
    eps: float = 1e-5,
    approximate: str = "none",
) -> Tensor:
    """Attention of t to f and an MLP, each behind a tanh gate; see `fused_gated_fusion`."""
    p = params
    t_normed = _norm(t, p.norm_t_weight, p.norm_t_bias, eps)
    mask = attended_keys(mask, kv_range, f.shape[1])  # the gradients of wk and wv sum over all of f
    f = _norm(zero_masked(f, mask), p.norm_f_weight, p.norm_f_bias, eps)
    q = heads(F.linear(t_normed, p.wq, p.bq), num_heads)
    if p.wk is None or p.wv is None:
        k, v = f.chunk(2, dim=-1)
    else:
        k, v = F.linear(f, p.wk, p.bk), F.linear(f, p.wv, p.bv)
    k, v = (heads(part, part.shape[-1] // q.shape[-1]) for part in (k, v))
    attended = F.linear(merge_heads(cross_attention(q, k, v, mask=mask, kv_range=kv_range)), p.wo, p.bo)
    middle = (t_normed if form == "jair" else t) + _gated(attended, p.alpha)
    inner = middle if form == "jair" else _norm(middle, p.norm_mlp_weight, p.norm_mlp_bias, eps)
    return middle + _gated(mlp(inner, p.w1, p.b1, p.w2, p.b2, approximate), p.beta)
