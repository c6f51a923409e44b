"""Weights of attention and pooling, for looking at; the fused operations never hold them."""

from __future__ import annotations

import torch


def softmax_over_kept(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """scores [B,...,N], mask bool [B,N] -> weights; masked ones are 0, and all of a row without kept ones."""
    if mask is None:
        return scores.softmax(dim=-1)
    mask = mask.view(mask.shape[0], *(1,) * (scores.ndim - 2), mask.shape[1])
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).masked_fill(~mask, 0)
