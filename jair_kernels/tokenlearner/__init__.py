"""TokenLearner v1.1: tokens pooled by scores that an MLP gives them."""

from __future__ import annotations

import torch

from jair_kernels import _checks as check
from jair_kernels._backends import select
from jair_kernels.tokenlearner.op import apply
from jair_kernels.tokenlearner.reference import tokenlearner


def check_score_mlp(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
    approximate: str,
    mixed: bool,
) -> None:
    """The arguments that fused_tokenlearner and fused_tokenfuser share."""
    d = x.shape[2]
    check.operand("w1", w1, "H D", (None, d), x, mixed)
    h = w1.shape[0]
    check.optional("b1", b1, "H", (h,), x, mixed)
    check.operand("w2", w2, "K H", (None, h), x, mixed)
    check.optional("b2", b2, "K", (w2.shape[0],), x, mixed)
    check.optional("norm_weight", norm_weight, "D", (d,), x, mixed)
    check.optional("norm_bias", norm_bias, "D", (d,), x, mixed)
    check.positive("eps", eps)
    check.choice("approximate", approximate, ("tanh", "none"))


def fused_tokenlearner(
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
    backend: str | None = None,
) -> torch.Tensor:
    """Learn K tokens from N: TokenLearner v1.1 in one pass over x.

        s = w2 gelu(w1 LN(x) + b1) + b2
        y[b,k] = sum_n softmax_n(s)[b,n,k] x[b,n]        (x itself is not normalised)

    Args:
        x: tokens [B,N,D], float32, bfloat16, float16 or float64; B may be 0.
        w1, b1: [H,D] and [H] or None, as in nn.Linear; x's dtype and device (autocast: any but float64).
        w2, b2: [K,H] and [K] or None.
        norm_weight, norm_bias: scale and shift of the LayerNorm over D, [D]; None = 1 and 0.
        mask: bool [B,N], True = keep. A masked token has no effect, not even a NaN in it; an image without
            kept tokens gives zeros and zero gradient.
        eps: added to the variance in the LayerNorm.
        approximate: "tanh" or "none" (erf), as in torch.nn.functional.gelu.
        backend: "reference", "cpu", "triton", "cuda"; None = the fastest that fits.

    Returns:
        y [B,K,D] in x's dtype, or in the autocast dtype.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, layout, option or backend.

    Source: Ryoo et al., "TokenLearner" (2106.11297), and the authors' code, version 1.1 (scenic).
    """
    check.main_input("x", x, "B N D")
    autocast = check.autocast_dtype(x)
    check_score_mlp(x, w1, b1, w2, b2, norm_weight, norm_bias, eps, approximate, mixed=autocast is not None)
    check.key_mask("mask", mask, x.shape[:2], x)
    chosen = select("fused_tokenlearner", backend, x, w1, w2)
    if chosen == "reference":
        return tokenlearner(
            x,
            w1,
            b1,
            w2,
            b2,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            mask=mask,
            eps=eps,
            approximate=approximate,
        )
    y: torch.Tensor = apply(
        x,
        w1,
        b1,
        w2,
        b2,
        norm_weight,
        norm_bias,
        mask,
        eps,
        approximate == "tanh",
        autocast or x.dtype,
        chosen,
    )[0]
    return y
