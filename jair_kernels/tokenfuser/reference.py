"""Plain PyTorch; the definition of fused_tokenfuser."""

from __future__ import annotations

import torch

from jair_kernels.tokenlearner.reference import score_mlp


def tokenfuser(
    x: torch.Tensor,
    tokens: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    *,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    approximate: str = "tanh",
) -> torch.Tensor:
    """y[b,n] = sum_k sigmoid(w2 gelu(w1 LN(x) + b1) + b2)[n,k] tokens[b,k]; see `fused_tokenfuser`."""
    weights = score_mlp(x, w1, b1, w2, b2, norm_weight, norm_bias, eps, approximate).sigmoid()
    return weights.to(tokens.dtype) @ tokens
