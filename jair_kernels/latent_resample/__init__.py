"""One layer of a latent resampler: learned latents attend to the tokens of an input."""

from __future__ import annotations

from typing import Any

import torch

from jair_kernels import _checks as check
from jair_kernels._backends import select
from jair_kernels.latent_resample.cost import METHODS
from jair_kernels.latent_resample.op import run
from jair_kernels.latent_resample.reference import Norm, latent_resample


def fused_latent_resample(
    x: torch.Tensor,
    latents: torch.Tensor,
    wq: torch.Tensor,
    wk: torch.Tensor,
    wv: torch.Tensor,
    wo: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    bq: torch.Tensor | None = None,
    bk: torch.Tensor | None = None,
    bv: torch.Tensor | None = None,
    bo: torch.Tensor | None = None,
    x_norm: Norm | None = None,
    latents_norm: Norm | None = None,
    attend_latents: bool = False,
    mask: torch.Tensor | None = None,
    eps: float = 1e-5,
    method: str = "auto",
    backend: str | None = None,
) -> torch.Tensor:
    """Resample N tokens to L latents by multi-head attention, without a residual: JAIR's Eq. 2.

        y = wo Attn(wq LN(latents) + bq, wk keys + bk, wv keys + bv) + bo,   keys = LN(x) [ ++ LN(latents) ]

    Args:
        x: tokens [B,N,D_kv], float32, bfloat16, float16 or float64; B may be 0.
        latents: [L,D], shared by the batch, or [B,L,D].
        wq: [h d, D]; head i owns rows i d..(i+1) d; scores are scaled by d^-0.5, d up to 256.
        wk, wv: [h_kv d, D_kv]. wo: [D, h d].
        num_heads: h.
        num_kv_heads: h_kv, a divisor of h; query head i uses head i // (h / h_kv). None = h.
        bq, bk, bv, bo: biases of the four projections or None.
        x_norm, latents_norm: (weight, bias or None) of a LayerNorm over the tokens and over the latents;
            None = not normalised.
        attend_latents: keys are the tokens followed by the latents, through the same wk and wv; this needs
            D_kv = D.
        mask: bool [B,N], True = keep; latents are always kept. A masked token has no effect, not even a NaN
            in it; without any key attention gives zeros, to which wo and bo are applied.
        eps: added to the variance in both norms.
        method: "projected" computes k and v of every token; "absorbed" moves wk into the queries and wv
            behind the pooling, which is fewer operations for few latents; both agree to rounding. "auto"
            takes the one with fewer operations, on a GPU counting bytes too, from shapes alone; in compiled
            code the one with fewer for each key, as it serves every N.
        backend: "reference" (always projected), "cpu", "triton"; None = the fastest that fits.

    Returns:
        y [B,L,D] in x's dtype, or in the autocast dtype.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, layout, option or backend.

    Source: Piergiovanni and Angelova, "Joint Adaptive Representations for Image-Language Learning"
    (2305.19924), eq. 2; with attend_latents Alayrac et al., "Flamingo" (2204.14198), PerceiverResampler.
    """
    check.main_input("x", x, "B N D_kv", nonempty="N D_kv")
    autocast = check.autocast_dtype(x)
    mixed = autocast is not None
    b, n, d_kv = x.shape
    check.latent_sets("latents", latents, b, x, mixed)
    width = latents.shape[-1]
    num_heads = check.count("num_heads", num_heads)
    if num_kv_heads is not None:
        num_kv_heads = check.count("num_kv_heads", num_kv_heads)
        check.divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    check.operand("wq", wq, "h_d D", (None, width), x, mixed)
    inner = wq.shape[0]
    check.divides("num_heads", num_heads, "the rows of wq", inner)
    d = inner // num_heads
    check.head_width("wq", d)
    check.operand("wk", wk, "h_kv_d D_kv", (kv_heads * d, d_kv), x, mixed)
    check.operand("wv", wv, "h_kv_d D_kv", (kv_heads * d, d_kv), x, mixed)
    check.operand("wo", wo, "D h_d", (width, inner), x, mixed)
    for name, bias, size in (
        ("bq", bq, inner),
        ("bk", bk, kv_heads * d),
        ("bv", bv, kv_heads * d),
        ("bo", bo, width),
    ):
        check.optional(name, bias, "rows", (size,), x, mixed)
    check.norm_pair("x_norm", x_norm, "D_kv", (d_kv,), x, mixed)
    check.norm_pair("latents_norm", latents_norm, "D", (width,), x, mixed)
    check.flag("attend_latents", attend_latents)
    if attend_latents and d_kv != width:
        raise ValueError(
            f"attend_latents: expected latents as wide as the tokens, D = D_kv = {d_kv}, got D = {width}"
        )
    check.key_mask("mask", mask, (b, n), x)
    check.positive("eps", eps)
    check.choice("method", method, METHODS)
    attending = None if method == "absorbed" else d
    chosen = select(
        "fused_latent_resample", backend, x, latents, wq, wk, head_width=attending, dtype=autocast
    )
    options: dict[str, Any] = {
        "num_heads": num_heads,
        "num_kv_heads": kv_heads,
        "bq": bq,
        "bk": bk,
        "bv": bv,
        "bo": bo,
    }
    options |= {"x_norm": x_norm, "latents_norm": latents_norm, "attend_latents": attend_latents}
    options |= {"mask": mask, "eps": eps, "method": method}
    if chosen == "reference":
        return latent_resample(x, latents, wq, wk, wv, wo, **options)
    return run(x, latents, wq, wk, wv, wo, **options, dtype=autocast or x.dtype, backend=chosen)
