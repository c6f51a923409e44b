"""Plain PyTorch; the definition of fused_tokenlearner."""

from __future__ import annotations

import torch

from jair_kernels._plain import layer_norm, mlp
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
    return mlp(layer_norm(x, norm_weight, norm_bias, eps), w1, b1, w2, b2, approximate)


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
