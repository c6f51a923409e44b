"""The pre-LN transformer layer."""

from __future__ import annotations

import torch

from jair_kernels import _checks as check
from jair_kernels._backends import select
from jair_kernels.transformer_layer.op import run
from jair_kernels.transformer_layer.params import TransformerLayerParams
from jair_kernels.transformer_layer.reference import transformer_layer

__all__ = ["TransformerLayerParams", "fused_transformer_layer"]


def fused_transformer_layer(
    x: torch.Tensor,
    params: TransformerLayerParams,
    *,
    num_heads: int,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    eps: float = 1e-5,
    approximate: str = "none",
    backend: str | None = None,
) -> torch.Tensor:
    """One pre-LN transformer layer, which keeps 6 D + M numbers a token for its backward.

        x <- x + wo softmax(d^-0.5 q k^T) v + bo,   [q, k, v] = wqkv LN(x) + bqkv
        y  = x + w2 gelu(w1 LN(x) + b1) + b2

    Args:
        x: tokens [B,N,D], float32, bfloat16, float16 or float64; B may be 0.
        params: a TransformerLayerParams. A norm whose weight is None is skipped.
        num_heads: h; the head width is D / h, up to 256.
        mask: bool [B,N], True = keep: padding. A masked token counts as zero, whatever it holds: it is
            attended by none, its own output is finite, and its gradient is zero.
        causal: token n attends tokens 0..n alone.
        eps: added to the variance in both norms.
        approximate: "none" (erf) or "tanh", as in torch.nn.functional.gelu.
        backend: "reference", "cpu", "triton"; None = the fastest that fits.

    Returns:
        y [B,N,D] in x's dtype, or in the autocast dtype.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, layout, option or backend.

    Source: Vaswani et al., "Attention Is All You Need" (1706.03762); Xiong et al., "On Layer Normalization in
    the Transformer Architecture" (2002.04745), for the place of the norms.
    """
    check.main_input("x", x, "B N D")
    autocast = check.autocast_dtype(x)
    num_heads = check.count("num_heads", num_heads)
    _check_params(params, x, num_heads, autocast is not None)
    check.key_mask("mask", mask, x.shape[:2], x)
    check.flag("causal", causal)
    check.positive("eps", eps)
    check.choice("approximate", approximate, ("tanh", "none"))
    head_width = x.shape[2] // num_heads
    chosen = select("fused_transformer_layer", backend, x, head_width=head_width, dtype=autocast)
    if chosen == "reference":
        return transformer_layer(
            x, params, num_heads=num_heads, mask=mask, causal=causal, eps=eps, approximate=approximate
        )
    return run(x, params, num_heads, mask, causal, eps, approximate == "tanh", autocast or x.dtype, chosen)


def _check_params(params: TransformerLayerParams, x: torch.Tensor, num_heads: int, mixed: bool) -> None:
    if not isinstance(params, TransformerLayerParams):
        raise TypeError(f"params: expected a TransformerLayerParams, got {type(params).__name__}")
    width, p = x.shape[2], params
    check.divides("num_heads", num_heads, "the width D", width)
    check.head_width("num_heads", width // num_heads)
    check.operand("params.wqkv", p.wqkv, "3D D", (3 * width, width), x, mixed)
    check.operand("params.wo", p.wo, "D D", (width, width), x, mixed)
    check.operand("params.w1", p.w1, "M D", (None, width), x, mixed)
    hidden = p.w1.shape[0]
    check.operand("params.w2", p.w2, "D M", (width, hidden), x, mixed)
    for name, size in {"bqkv": 3 * width, "bo": width, "b1": hidden, "b2": width}.items():
        check.optional(f"params.{name}", getattr(p, name), "rows", (size,), x, mixed)
    for name in ("norm1", "norm2"):
        check.norm_fields(
            f"params.{name}", getattr(p, f"{name}_weight"), getattr(p, f"{name}_bias"), width, x, mixed
        )
