"""Plain PyTorch; the definition of fused_token_pool."""

from __future__ import annotations

import torch


def token_pool(
    x: torch.Tensor,
    scores: torch.Tensor,
    *,
    weighting: str = "softmax",
    reduction: str = "sum",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """y[b,k] = sum_n w[b,n,k] x[b,n], w = softmax over n or sigmoid of the scores; see `fused_token_pool`."""
    keep = None if mask is None else mask.unsqueeze(-1)
    if (
        keep is not None
    ):  # before any arithmetic, so that a NaN in a masked token reaches neither y nor a gradient
        x = x.masked_fill(~keep, 0)
        scores = scores.masked_fill(~keep, float("-inf"))
    weights = scores.softmax(dim=1) if weighting == "softmax" else scores.sigmoid()
    if keep is not None:
        weights = weights.masked_fill(~keep, 0)
    y = weights.to(x.dtype).transpose(1, 2) @ x
    if reduction == "mean":
        kept = x.shape[1] if mask is None else mask.sum(dim=1).clamp(min=1).to(y.dtype).view(-1, 1, 1)
        y = y / kept
    return y
