"""fused_gated_fusion: its sublayers in order, and their backward in the reverse order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from jair_kernels import _blocks, _mlp
from jair_kernels._autograd import Differentiable, cast, differentiable_once, take_saved
from jair_kernels._backends import block, register_composed
from jair_kernels._blocks import Norm
from jair_kernels._mlp import Mlp
from jair_kernels._plain import zero_masked
from jair_kernels._products import added, product
from jair_kernels._sums import column_sum
from jair_kernels.gated_fusion.params import GatedFusionParams

Tensor = torch.Tensor
Optional = Tensor | None

register_composed("fused_gated_fusion", *_blocks.NEEDED)


class _Parts:
    """The sublayers of one block, their weights in the dtype of the products."""

    def __init__(
        self, p: GatedFusionParams, num_heads: int, eps: float, tanh: bool, dtype: torch.dtype, backend: str
    ) -> None:
        self.norm_t = Norm(p.norm_t_weight, p.norm_t_bias, eps)
        self.norm_f = Norm(p.norm_f_weight, p.norm_f_bias, eps)
        self.norm_mlp = Norm(p.norm_mlp_weight, p.norm_mlp_bias, eps)
        self.wq = cast(p.wq, dtype)
        self.wkv: tuple[Tensor, ...] = ()  # f holds keys and values
        if p.wk is not None and p.wv is not None:
            self.wkv = _blocks.key_value_weights(p.wk, p.wv, dtype)
        self.out = _blocks.Gated(cast(p.wo, dtype), p.bo, p.alpha, backend, alike=True)
        self.mlp = Mlp(cast(p.w1, dtype), p.b1, cast(p.w2, dtype), p.b2, p.beta, tanh)
        self.num_heads = num_heads
        self.width = p.wq.shape[0] // num_heads

    def keys(self, f: Tensor, kv: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values [B,N,h_kv,d] as views: of their projections, or of f."""
        if not kv:
            k, v = f.unflatten(2, (2, -1, self.width)).unbind(2)
            return k, v
        b, n, _ = f.shape
        return _blocks.split_heads(kv, b, n, self.width)


def _rows(f: Tensor, mask: Optional) -> Tensor:
    """Tokens of f as rows, masked ones 0."""
    return zero_masked(f, mask).reshape(-1, f.shape[2])


class _GatedFusion(torch.autograd.Function):
    """Saves t, f, q, k and v unless f holds them, the attention's output and softmax statistics, the middle
    residual and h; norms, the GELU and both branches' outputs are not kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        t: Tensor,
        f: Tensor,
        mask: Optional,
        kv_range: Optional,
        num_heads: int,
        jair: bool,
        eps: float,
        tanh: bool,
        dtype: torch.dtype,
        backend: str,
        *params: Optional,
    ) -> tuple[Tensor, ...]:
        p = GatedFusionParams(*params)  # type: ignore[arg-type]
        s = _Parts(p, num_heads, eps, tanh, dtype, backend)
        b, l, width = t.shape
        t_rows, f = cast(t, dtype).reshape(b * l, width), cast(f, dtype)
        a, stats_t = _blocks.norm(backend, t_rows, s.norm_t)
        q = _blocks.linear(a, s.wq, p.bq).view(b, l, num_heads, s.width)
        kv: tuple[Tensor, ...] = ()
        stats_f = t.new_empty((0,))
        if s.wkv:
            c, stats_f = _blocks.norm(backend, _rows(f, mask), s.norm_f)
            kv = _blocks.keys_and_values(c, s.wkv, p.bk, p.bv)
        k, v = s.keys(f, kv)
        o, stats = block("cross_attention", backend).forward(q, k, v, mask, kv_range, s.width**-0.5)
        attended = _blocks.linear(o.flatten(0, 1).flatten(1), s.out.weight, p.bo)
        if jair:
            base = None if s.norm_t.weight is None else (stats_t, s.norm_t)
            a = middle = _blocks.add(backend, t_rows, attended, p.alpha, base)
            stats_mlp = t.new_empty((0,))
        else:
            middle, a, stats_mlp = _blocks.add_then_norm(backend, t_rows, attended, p.alpha, s.norm_mlp)
        y, h = _mlp.forward(backend, middle, a, s.mlp)
        return y, q, o, stats, middle, stats_t, stats_f, stats_mlp, h, *kv

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        t, f, mask, kv_range, ctx.num_heads, ctx.jair, *options = inputs[:10]
        ctx.eps, ctx.tanh, ctx.dtype, ctx.backend = options
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(t, f, mask, kv_range, *inputs[10:], *output[1:])

    @staticmethod
    @differentiable_once("fused_gated_fusion")
    def backward(ctx: Any, dy: Optional, *_: None) -> tuple[Optional, ...]:
        count = len(GatedFusionParams._fields)
        if dy is None:
            return (None,) * (10 + count)
        t, f, mask, kv_range, *tensors = take_saved(ctx)
        p = GatedFusionParams(*tensors[:count])
        q, o, stats, middle, stats_t, stats_f, stats_mlp, h, *kv = tensors[count:]
        del tensors
        backend, dtype = ctx.backend, ctx.dtype
        s = _Parts(p, ctx.num_heads, ctx.eps, ctx.tanh, dtype, backend)
        need_t, need_f, *need_params = (ctx.needs_input_grad[i] for i in (0, 1, *range(10, 10 + count)))
        needs: Any = GatedFusionParams(*need_params)
        t_rows = cast(t, dtype).reshape(-1, t.shape[2])
        dy = cast(dy, dtype)

        norm_mlp = Norm(None, None, ctx.eps) if ctx.jair else s.norm_mlp
        a = _blocks.norm_again(backend, middle, stats_mlp, norm_mlp)
        of_weights = (needs.w1, needs.b1, needs.w2, needs.b2, needs.beta)
        of_mlp = _mlp.backward(backend, dy, a, h, s.mlp, of_weights)
        del a, h
        dz, dmlp_weight, dmlp_bias = _blocks.norm_backward(backend, of_mlp.a, dy, middle, stats_mlp, norm_mlp)

        wanted = (needs.wo, needs.bo, needs.alpha)
        dwo, dbo, dalpha = s.out.backward(dz, o.flatten(0, 1).flatten(1), wanted)
        dout = s.out.through(dz).view(o.shape)
        k, v = s.keys(cast(f, dtype), kv)
        attention = block("cross_attention", backend).backward
        dq, dkv = attention(dout, q, k, v, mask, kv_range, o, stats, s.width**-0.5, False)
        del q, k, v, kv, o, dout
        dq, dkv = (grad.flatten(0, 1).flatten(1) for grad in (dq, dkv))

        a = _blocks.norm_again(backend, t_rows, stats_t, s.norm_t)
        da = added(dz, dq, s.wq) if ctx.jair else product(dq, s.wq)  # dz has served
        dt, dt_weight, dt_bias = _blocks.norm_backward(
            backend, da, None if ctx.jair else dz, t_rows, stats_t, s.norm_t
        )
        df = dwk = dwv = df_weight = df_bias = None
        if not s.wkv:
            df = dkv.view(f.shape)
        else:
            f_rows = _rows(cast(f, dtype), mask)
            if needs.wk or needs.wv:
                dwk, dwv = product(dkv.mT, _blocks.norm_again(backend, f_rows, stats_f, s.norm_f)).chunk(2)
            if need_f or needs.norm_f_weight or needs.norm_f_bias:
                dc = _blocks.through_keys_and_values(dkv, s.wkv)
                df, df_weight, df_bias = _blocks.norm_backward(backend, dc, None, f_rows, stats_f, s.norm_f)
                df = zero_masked(df.view(f.shape), mask)
        grads = {
            "norm_t_weight": dt_weight,
            "norm_t_bias": dt_bias,
            "norm_f_weight": df_weight,
            "norm_f_bias": df_bias,
            "wq": product(dq.mT, a) if needs.wq else None,
            "bq": column_sum(dq) if needs.bq else None,
            "wk": dwk,
            "bk": None if p.bk is None else torch.zeros_like(p.bk),  # the softmax does not see it
            "wv": dwv,
            "bv": column_sum(dkv.chunk(2, dim=1)[1]) if needs.bv else None,
            "wo": dwo,
            "bo": dbo,
            "norm_mlp_weight": dmlp_weight,
            "norm_mlp_bias": dmlp_bias,
            "w1": of_mlp.w1,
            "b1": of_mlp.b1,
            "w2": of_mlp.w2,
            "b2": of_mlp.b2,
            "alpha": dalpha,
            "beta": of_mlp.gate,
        }
        of_t = cast(dt, t.dtype).view(t.shape) if need_t else None
        of_f = cast(df, f.dtype) if need_f and df is not None else None
        return of_t, of_f, *(None,) * 8, *_blocks.like_inputs(grads, p, needs)


apply = Differentiable("fused_gated_fusion", _GatedFusion)


def run(
    t: Tensor,
    f: Tensor,
    params: GatedFusionParams,
    num_heads: int,
    form: str,
    mask: Optional,
    kv_range: Optional,
    eps: float,
    tanh: bool,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """The block on a backend with kernels."""
    y: Tensor = apply(t, f, mask, kv_range, num_heads, form == "jair", eps, tanh, dtype, backend, *params)[0]
    return y.view(t.shape)
