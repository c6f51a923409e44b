"""fused_transformer_layer: its sublayers in order, and their backward in the reverse order."""

from __future__ import annotations

from typing import Any

import torch

from jair_kernels import _blocks, _mlp
from jair_kernels._autograd import Differentiable, cast, differentiable_once, take_saved
from jair_kernels._backends import block, register_composed
from jair_kernels._blocks import Norm
from jair_kernels._mlp import Mlp
from jair_kernels._plain import zero_masked
from jair_kernels._products import product
from jair_kernels._sums import column_sum
from jair_kernels.transformer_layer.params import TransformerLayerParams
from jair_kernels.transformer_layer.reference import causal_range

Tensor = torch.Tensor
Optional = Tensor | None

register_composed("fused_transformer_layer", *_blocks.NEEDED)


def _parts(p: TransformerLayerParams, eps: float, tanh: bool, dtype: torch.dtype) -> tuple[Norm, Norm, Mlp]:
    mlp = Mlp(cast(p.w1, dtype), p.b1, cast(p.w2, dtype), p.b2, None, tanh)
    return Norm(p.norm1_weight, p.norm1_bias, eps), Norm(p.norm2_weight, p.norm2_bias, eps), mlp


class _TransformerLayer(torch.autograd.Function):
    """Saves x, qkv, the attention's output and softmax statistics, the middle residual and h: 6 D + M a
    token; both norms and the GELU are computed again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        mask: Optional,
        num_heads: int,
        causal: bool,
        eps: float,
        tanh: bool,
        dtype: torch.dtype,
        backend: str,
        *params: Optional,
    ) -> tuple[Tensor, ...]:
        p = TransformerLayerParams(*params)  # type: ignore[arg-type]
        norm1, norm2, mlp = _parts(p, eps, tanh, dtype)
        b, n, width = x.shape
        rows = zero_masked(cast(x, dtype), mask).reshape(b * n, width)
        a, stats1 = _blocks.norm(backend, rows, norm1)
        qkv = _blocks.linear(a, cast(p.wqkv, dtype), p.bqkv)
        q, k, v = qkv.view(b, n, 3, num_heads, width // num_heads).unbind(2)
        scale = (width // num_heads) ** -0.5
        allowed = causal_range(x) if causal else None
        o, stats = block("cross_attention", backend).forward(q, k, v, mask, allowed, scale)
        attended = _blocks.linear(o.view(b * n, width), cast(p.wo, dtype), p.bo)
        middle, a, stats2 = _blocks.add_then_norm(backend, rows, attended, None, norm2)
        y, h = _mlp.forward(backend, middle, a, mlp)
        return y, qkv, o, stats, middle, stats1, stats2, h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, mask, ctx.num_heads, ctx.causal, ctx.eps, ctx.tanh, ctx.dtype, ctx.backend, *params = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mask, *params, *output[1:])

    @staticmethod
    @differentiable_once("fused_transformer_layer")
    def backward(ctx: Any, dy: Optional, *_: None) -> tuple[Optional, ...]:
        count = len(TransformerLayerParams._fields)
        if dy is None:
            return (None,) * (8 + count)
        x, mask, *tensors = take_saved(ctx)
        p = TransformerLayerParams(*tensors[:count])
        qkv, o, stats, middle, stats1, stats2, h = tensors[count:]
        del tensors
        backend, dtype = ctx.backend, ctx.dtype
        norm1, norm2, mlp = _parts(p, ctx.eps, ctx.tanh, dtype)
        needs: Any = TransformerLayerParams(*ctx.needs_input_grad[8:])
        b, n, width = x.shape
        rows = zero_masked(cast(x, dtype), mask).reshape(b * n, width)
        dy = cast(dy, dtype)

        a = _blocks.norm_again(backend, middle, stats2, norm2)
        wanted = (needs.w1, needs.b1, needs.w2, needs.b2, False)
        grads = _mlp.backward(backend, dy, a, h, mlp, wanted)
        del a, h
        dz, dnorm2_weight, dnorm2_bias = _blocks.norm_backward(backend, grads.a, dy, middle, stats2, norm2)

        last = _blocks.Gated(cast(p.wo, dtype), p.bo, None, ctx.backend)
        dwo, dbo, _gate = last.backward(dz, o.view(b * n, width), (needs.wo, needs.bo, False))
        dout = last.through(dz).view(o.shape)
        q, k, v = qkv.view(b, n, 3, ctx.num_heads, width // ctx.num_heads).unbind(2)
        allowed = causal_range(x) if ctx.causal else None
        scale = (width // ctx.num_heads) ** -0.5
        attention = block("cross_attention", backend).backward
        dqkv, _empty = attention(dout, q, k, v, mask, allowed, o, stats, scale, True)
        del qkv, q, k, v, o, dout
        dqkv = dqkv.view(b * n, 3 * width)
        a = _blocks.norm_again(backend, rows, stats1, norm1)
        dwqkv = product(dqkv.mT, a) if needs.wqkv else None
        dbqkv = _query_and_value_sums(dqkv) if needs.bqkv else None
        dx, dnorm1_weight, dnorm1_bias = _blocks.norm_backward(
            backend, product(dqkv, cast(p.wqkv, dtype)), dz, rows, stats1, norm1
        )
        dx = zero_masked(dx.view(b, n, width), mask)
        of_params = {
            "norm1_weight": dnorm1_weight,
            "norm1_bias": dnorm1_bias,
            "wqkv": dwqkv,
            "bqkv": dbqkv,
            "wo": dwo,
            "bo": dbo,
            "norm2_weight": dnorm2_weight,
            "norm2_bias": dnorm2_bias,
            "w1": grads.w1,
            "b1": grads.b1,
            "w2": grads.w2,
            "b2": grads.b2,
        }
        return (cast(dx, x.dtype), *(None,) * 7, *_blocks.like_inputs(of_params, p, needs))


def _query_and_value_sums(dqkv: Tensor) -> Tensor:
    """Gradient of the bias of q, k, v; the softmax does not see the bias of k."""
    total = column_sum(dqkv)
    width = total.shape[0] // 3
    return torch.cat([total[:width], torch.zeros_like(total[:width]), total[2 * width :]])


apply = Differentiable("fused_transformer_layer", _TransformerLayer)


def run(
    x: Tensor,
    params: TransformerLayerParams,
    num_heads: int,
    mask: Optional,
    causal: bool,
    eps: float,
    tanh: bool,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """The layer on a backend with kernels."""
    y: Tensor = apply(x, mask, num_heads, causal, eps, tanh, dtype, backend, *params)[0]
    return y.view(x.shape)
