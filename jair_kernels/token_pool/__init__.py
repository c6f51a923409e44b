"""Weighted pooling of tokens by given scores."""

from __future__ import annotations

import torch

from jair_kernels import _checks as check
from jair_kernels._backends import select
from jair_kernels.token_pool.op import apply
from jair_kernels.token_pool.reference import token_pool


def fused_token_pool(
    x: torch.Tensor,
    scores: torch.Tensor,
    *,
    weighting: str = "softmax",
    reduction: str = "sum",
    mask: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Pool N tokens into K by given scores: the second half of a TokenLearner.

        y[b,k] = sum_n w[b,n,k] x[b,n],   w = softmax over n of the scores, or their sigmoid

    Args:
        x: tokens [B,N,D], float32, bfloat16, float16 or float64; B may be 0.
        scores: [B,N,K], same dtype and device. -inf leaves a token out of an output; where that leaves none,
            kernels give zeros and zero gradients, the reference NaN, as a softmax does.
        weighting: "softmax" (TokenLearner v1.1) or "sigmoid" (v1).
        reduction: "sum", or "mean" = the sum divided by the number of kept tokens.
        mask: bool [B,N], True = keep. A masked token has no effect, not even a NaN in it; a row without kept
            tokens gives zeros and zero gradient.
        backend: "reference", "cpu", "triton", "cuda"; None = the fastest that fits.

    Returns:
        y [B,K,D] in x's dtype, or in the autocast dtype.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, layout, option or backend.

    Source: Ryoo et al., "TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?"
    (2106.11297), eq. 1-2.
    """
    check.main_input("x", x, "B N D")
    autocast = check.autocast_dtype(x)
    b, n, _ = x.shape
    check.operand("scores", scores, "B N K", (b, n, None), x, autocast is not None)
    check.choice("weighting", weighting, ("softmax", "sigmoid"))
    check.choice("reduction", reduction, ("sum", "mean"))
    check.key_mask("mask", mask, (b, n), x)
    chosen = select("fused_token_pool", backend, x, scores)
    if chosen == "reference":
        return token_pool(x, scores, weighting=weighting, reduction=reduction, mask=mask)
    y: torch.Tensor = apply(
        x, scores, mask, weighting == "sigmoid", reduction == "mean", autocast or x.dtype, chosen
    )[0]
    return y
