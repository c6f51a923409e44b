"""Gated fusion of two modalities: cross-attention and an MLP behind tanh gates."""

from __future__ import annotations

import torch

from jair_kernels import _checks as check
from jair_kernels._backends import select
from jair_kernels.cross_attention.reference import attended_keys
from jair_kernels.gated_fusion.op import run
from jair_kernels.gated_fusion.params import GatedFusionParams
from jair_kernels.gated_fusion.reference import gated_fusion

__all__ = ["GatedFusionParams", "fused_gated_fusion"]

FORMS = ("jair", "flamingo")


def fused_gated_fusion(
    t: torch.Tensor,
    f: torch.Tensor,
    params: GatedFusionParams,
    *,
    num_heads: int,
    form: str = "jair",
    mask: torch.Tensor | None = None,
    kv_range: torch.Tensor | None = None,
    eps: float = 1e-5,
    approximate: str = "none",
    backend: str | None = None,
) -> torch.Tensor:
    """Fuse f into t: t attends to f, then an MLP, each behind a tanh gate that starts at 0.

        form "jair"      P = LN(t) + tanh(alpha) Attn(LN(t), LN(f));   y = P + tanh(beta) MLP(P)
        form "flamingo"  P = t + tanh(alpha) Attn(LN(t), LN(f));       y = P + tanh(beta) MLP(LN(P))

    Attn(a, c) = wo softmax(d^-0.5 q k^T) v + bo over heads, q = wq a + bq, k = wk c + bk, v = wv c + bv;
    MLP(a) = w2 gelu(w1 a + b1) + b2.

    Args:
        t: [B,L,D], float32, bfloat16, float16 or float64; B may be 0.
        f: [B,N,D_kv], same dtype and device; or [B,N,2 h_kv d], keys then values, where params.wk and
            params.wv are None.
        params: a GatedFusionParams. A norm whose weight is None is skipped, a gate that is None is 1.
            Gates are [1] or [D]. wk and wv may have fewer heads than wq (a divisor of num_heads); both
            None: f holds what they would make, k and v, and norm_f_*, bk and bv must be None too.
        num_heads: heads of the queries; the head width d is rows of wq / num_heads, up to 256.
        form: "jair" (Eq. 3) or "flamingo"; norm_mlp belongs to "flamingo" alone.
        mask: bool [B,N], True = keep: padding of f. A masked token has no effect, not even a NaN in it.
        kv_range: int32 or int64 [B,L,2]: token l of t attends f's tokens [start, end) alone; a token outside
            every range has no effect, as if `mask` left it out.
        eps: added to the variance in all norms.
        approximate: "none" (erf) or "tanh", as in torch.nn.functional.gelu.
        backend: "reference", "cpu", "triton"; None = the fastest that fits.

    Returns:
        y [B,L,D] in t's dtype, or in the autocast dtype. Where nothing may be attended, softmax(..) v is
        zero; bo and the residual stay.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, layout, option or backend.

    Source: Piergiovanni and Angelova, "Joint Adaptive Representations for Image-Language Learning"
    (2305.19924), eq. 3; Alayrac et al., "Flamingo" (2204.14198), gated cross-attention.
    """
    check.main_input("t", t, "B L D", nonempty="L D")
    autocast = check.autocast_dtype(t)
    mixed = autocast is not None
    b, l, _ = t.shape
    check.operand("f", f, "B N D_kv", (b, None, None), t, mixed)
    n = f.shape[1]
    check.choice("form", form, FORMS)
    num_heads = check.count("num_heads", num_heads)
    _check_params(params, t, f, num_heads, form, mixed)
    check.key_mask("mask", mask, (b, n), t)
    check.key_range("kv_range", kv_range, (b, l), t)
    check.positive("eps", eps)
    check.choice("approximate", approximate, ("tanh", "none"))
    head_width = params.wq.shape[0] // num_heads
    chosen = select("fused_gated_fusion", backend, t, f, head_width=head_width, dtype=autocast)
    if chosen == "reference":
        return gated_fusion(
            t,
            f,
            params,
            num_heads=num_heads,
            form=form,
            mask=mask,
            kv_range=kv_range,
            eps=eps,
            approximate=approximate,
        )
    mask = attended_keys(mask, kv_range, n)
    return run(
        t, f, params, num_heads, form, mask, kv_range, eps, approximate == "tanh", autocast or t.dtype, chosen
    )


def _check_params(
    params: GatedFusionParams, t: torch.Tensor, f: torch.Tensor, num_heads: int, form: str, mixed: bool
) -> None:
    if not isinstance(params, GatedFusionParams):
        raise TypeError(f"params: expected a GatedFusionParams, got {type(params).__name__}")
    width, p = t.shape[2], params
    check.operand("params.wq", p.wq, "h_d D", (None, width), t, mixed)
    inner = p.wq.shape[0]
    check.divides("num_heads", num_heads, "the rows of params.wq", inner)
    d = inner // num_heads
    check.head_width("params.wq", d)
    _check_keys(p, t, f, num_heads, d, mixed)
    check.operand("params.wo", p.wo, "D h_d", (width, inner), t, mixed)
    check.operand("params.w1", p.w1, "M D", (None, width), t, mixed)
    hidden = p.w1.shape[0]
    check.operand("params.w2", p.w2, "D M", (width, hidden), t, mixed)
    for name, size in {"bq": inner, "bo": width, "b1": hidden, "b2": width}.items():
        check.optional(f"params.{name}", getattr(p, name), "rows", (size,), t, mixed)
    check.norm_fields("params.norm_t", p.norm_t_weight, p.norm_t_bias, width, t, mixed)
    check.norm_fields("params.norm_mlp", p.norm_mlp_weight, p.norm_mlp_bias, width, t, mixed)
    if form == "jair" and p.norm_mlp_weight is not None:
        raise ValueError(
            "params.norm_mlp_weight: expected None in form 'jair', which has no norm before its MLP, "
            "got a tensor"
        )
    for name in ("alpha", "beta"):
        check.gate(f"params.{name}", getattr(p, name), width, t, mixed)


def _check_keys(
    p: GatedFusionParams, t: torch.Tensor, f: torch.Tensor, num_heads: int, d: int, mixed: bool
) -> None:
    """What makes keys and values of f; or f, where it holds them."""
    kv_width = f.shape[2]
    if p.wk is None and p.wv is None:
        for name in ("norm_f_weight", "norm_f_bias", "bk", "bv"):
            if getattr(p, name) is not None:
                raise ValueError(
                    f"params.{name}: expected None where params.wk and params.wv are None, got a tensor"
                )
        if kv_width % (2 * d) or num_heads % (kv_width // (2 * d)):
            raise ValueError(
                f"f: expected 2 h_kv d columns where params.wk and params.wv are None, d = {d} and h_kv a "
                f"divisor of num_heads = {num_heads}, got {int(kv_width)}"
            )
        return
    check.operand("params.wk", p.wk, "h_kv_d D_kv", (None, kv_width), t, mixed)
    assert p.wk is not None
    kv_inner = p.wk.shape[0]
    if kv_inner % d or num_heads % (kv_inner // d):
        raise ValueError(
            f"params.wk: expected h_kv d rows, d = {d} and h_kv a divisor of num_heads = {num_heads}, "
            f"got {kv_inner}"
        )
    check.operand("params.wv", p.wv, "h_kv_d D_kv", (kv_inner, kv_width), t, mixed)
    check.optional("params.bk", p.bk, "rows", (kv_inner,), t, mixed)
    check.optional("params.bv", p.bv, "rows", (kv_inner,), t, mixed)
    check.norm_fields("params.norm_f", p.norm_f_weight, p.norm_f_bias, kv_width, t, mixed)
