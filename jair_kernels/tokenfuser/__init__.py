"""TokenFuser: K processed tokens distributed back over N positions."""

from __future__ import annotations

import torch

from jair_kernels import _checks as check
from jair_kernels._backends import select
from jair_kernels.tokenfuser.op import apply
from jair_kernels.tokenfuser.reference import tokenfuser
from jair_kernels.tokenlearner import check_score_mlp


def fused_tokenfuser(
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
    backend: str | None = None,
) -> torch.Tensor:
    """Write K tokens back to N positions, weighted by what each position looks like.

        y[b,n] = sum_k sigmoid(w2 gelu(w1 LN(x) + b1) + b2)[b,n,k] tokens[b,k]

    Args:
        x: positions [B,N,D], float32, bfloat16, float16 or float64; B may be 0.
        tokens: [B,K,D], same dtype and device.
        w1, b1: [H,D] and [H] or None, as in nn.Linear; x's dtype and device (autocast: any but float64).
        w2, b2: [K,H] and [K] or None.
        norm_weight, norm_bias: scale and shift of the LayerNorm over D, [D]; None = 1 and 0.
        eps: added to the variance in the LayerNorm.
        approximate: "tanh" or "none" (erf), as in torch.nn.functional.gelu.
        backend: "reference", "cpu", "triton"; None = the fastest that fits.

    Returns:
        y [B,N,D] in x's dtype, or in the autocast dtype; the caller adds the residual.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, layout, option or backend.

    Source: Ryoo et al., "TokenLearner" (2106.11297), section 3.3, and the authors' code (scenic).
    """
    check.main_input("x", x, "B N D")
    autocast = check.autocast_dtype(x)
    mixed = autocast is not None
    check_score_mlp(x, w1, b1, w2, b2, norm_weight, norm_bias, eps, approximate, mixed)
    check.operand("tokens", tokens, "B K D", (x.shape[0], w2.shape[0], x.shape[2]), x, mixed)
    chosen = select("fused_tokenfuser", backend, x, tokens, w1, w2)
    if chosen == "reference":
        norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
        return tokenfuser(x, tokens, w1, b1, w2, b2, **norm, eps=eps, approximate=approximate)
    y: torch.Tensor = apply(
        x,
        tokens,
        w1,
        b1,
        w2,
        b2,
        norm_weight,
        norm_bias,
        eps,
        approximate == "tanh",
        autocast or x.dtype,
        chosen,
    )[0]
    return y
