"""Plain PyTorch; the definition of fused_tokenlearner."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jair_kernels.token_pool.reference import token_pool


def score_mlp(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    approximate: str,
) -> torch.Tensor:
    """w2 gelu(w1 LN(x) + b1) + b2 of every token: x [B,N,D] -> scores [B,N,K]."""
    wide = (
        x.dtype
    )  # autocast lets dtypes differ, but on the CPU it does not bring those of layer_norm together
    for t in (norm_weight, norm_bias):
        wide = wide if t is None else torch.promote_types(wide, t.dtype)
    weight, bias = (None if t is None else t.to(wide) for t in (norm_weight, norm_bias))
    normed = F.layer_norm(x.to(wide), x.shape[-1:], weight, bias, eps)
    return F.linear(F.gelu(F.linear(normed, w1, b1), approximate=approximate), w2, b2)


def tokenlearner(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    *,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    eps: float = 1e-6,
    approximate: str = "tanh",
) -> torch.Tensor:
    """y[b,k] = sum_n softmax_n(w2 gelu(w1 LN(x) + b1) + b2)[n,k] x[b,n]; see `fused_tokenlearner`."""
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0)
    scores = score_mlp(x, w1, b1, w2, b2, norm_weight, norm_bias, eps, approximate)
    return token_pool(x, scores, mask=mask)
