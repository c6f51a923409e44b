"""fused_latent_resample for the dispatcher: the choice of a form, and the projected one, on attention."""

from __future__ import annotations

from typing import Any

import torch

import jair_kernels.query_pool.op  # noqa: F401 - registers its kernels
from jair_kernels import _blocks
from jair_kernels._autograd import Differentiable, cast, differentiable_once
from jair_kernels._backends import block, register_composed
from jair_kernels._plain import zero_masked
from jair_kernels._products import product
from jair_kernels._sums import column_sum
from jair_kernels.latent_resample import absorbed, cost
from jair_kernels.latent_resample.arguments import (
    Options,
    Tensors,
    extended,
    keys_of,
    latent_rows,
    norms,
    samples,
    sizes,
    sum_if,
    token_rows,
)

Tensor = torch.Tensor
Optional = Tensor | None

register_composed("fused_latent_resample", *_blocks.NEEDED, "query_pool")


class _Projected(torch.autograd.Function):
    """Saves inputs, q, k, v, the attention's output and softmax statistics, and the norms' statistics."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        mask: Optional,
        num_heads: int,
        kv_heads: int,
        attend_latents: bool,
        eps: float,
        dtype: torch.dtype,
        backend: str,
        *tensors: Optional,
    ) -> tuple[Tensor, ...]:
        t = Tensors(*tensors)  # type: ignore[arg-type]
        o = Options(num_heads, kv_heads, attend_latents, eps, dtype, backend)
        (b, n, _), l, d = t.x.shape, t.latents.shape[-2], t.wq.shape[0] // num_heads
        latents, z, stats_z = latent_rows(t, o)
        _rows, normed, stats_x = token_rows(t, mask, o)
        keys = keys_of(normed, z.view(latents.shape), b, n, o)
        q = _blocks.linear(z, cast(t.wq, dtype), t.bq).view(samples(t), l, num_heads, d)
        weights = _blocks.key_value_weights(t.wk, t.wv, dtype)
        kv = _blocks.keys_and_values(keys.flatten(0, 1), weights, t.bk, t.bv)
        k, v = _blocks.split_heads(kv, b, keys.shape[1], d)
        attention = block("cross_attention", backend).forward
        out, stats = attention(q.expand(b, l, num_heads, d), k, v, extended(mask, t, o), None, d**-0.5)
        y = _blocks.linear(out.flatten(0, 1).flatten(1), cast(t.wo, dtype), t.bo)
        return y, q, out, stats, stats_z, stats_x, *kv

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        mask, *options = inputs[:7]
        ctx.options = options
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, *inputs[7:], *output[1:])

    @staticmethod
    @differentiable_once("fused_latent_resample")
    def backward(ctx: Any, dy: Optional, *others: None) -> tuple[Optional, ...]:
        count = len(Tensors._fields)
        if dy is None:
            return (None,) * (7 + count)
        mask, *saved = ctx.saved_tensors
        t, (q, out, stats, stats_z, stats_x, *kv) = Tensors(*saved[:count]), saved[count:]
        o = Options(*ctx.options)
        needs: Any = Tensors(*ctx.needs_input_grad[7:])
        backend, dtype = o.backend, o.dtype
        (b, n, _), l, d = t.x.shape, t.latents.shape[-2], q.shape[3]
        latents = latent_rows(t, o, stats_z)[0]
        z = _blocks.norm_again(backend, latents.flatten(0, -2), stats_z, norms(t, o)[1])
        rows = token_rows(t, mask, o, stats_x)[0]
        normed = _blocks.norm_again(backend, rows, stats_x, norms(t, o)[0])
        keys = keys_of(normed, z.view(latents.shape), b, n, o)
        k, v = _blocks.split_heads(kv, b, keys.shape[1], d)
        keys = keys.flatten(0, 1)

        dy = cast(dy, dtype)
        last = _blocks.Gated(cast(t.wo, dtype), t.bo, None, backend)
        dwo, dbo, _gate = last.backward(dy, out.flatten(0, 1).flatten(1), (needs.wo, needs.bo, False))
        attention = block("cross_attention", backend).backward
        dout = last.through(dy).view(out.shape)
        whole = q.expand(b, l, o.num_heads, d)
        dq, dkv = attention(dout, whole, k, v, extended(mask, t, o), None, out, stats, d**-0.5, False)
        dq = sum_if(dq, t.latents.dim() == 2).view(samples(t) * l, t.wq.shape[0])
        dkv = dkv.flatten(0, 1).flatten(1)

        dkeys = None
        if needs.x or needs.x_weight or needs.x_bias or o.attend_latents:
            dkeys = _blocks.through_keys_and_values(dkv, _blocks.key_value_weights(t.wk, t.wv, dtype))
        dz = product(dq, cast(t.wq, dtype))
        dx = x_weight = x_bias = None
        if dkeys is not None:
            per_sample = dkeys.unflatten(0, (b, k.shape[1]))
            if o.attend_latents:
                appended = sum_if(per_sample[:, t.x.shape[1] :], t.latents.dim() == 2)
                dz = dz + appended.reshape(dz.shape)
            tokens = per_sample[:, : t.x.shape[1]].reshape(rows.shape)
            dx, x_weight, x_bias = _blocks.norm_backward(backend, tokens, None, rows, stats_x, norms(t, o)[0])
            dx = zero_masked(dx.view(t.x.shape), mask)
        dlatents, latents_weight, latents_bias = _blocks.norm_backward(
            backend, dz, None, latents.flatten(0, -2), stats_z, norms(t, o)[1]
        )
        dwk = dwv = None
        if needs.wk or needs.wv:
            dwk, dwv = product(dkv.mT, keys).chunk(2)
        grads = {
            "x": dx,
            "latents": dlatents.view(t.latents.shape),
            "wq": product(dq.mT, z),
            "bq": column_sum(dq),
            "wk": dwk,
            "bk": None if t.bk is None else torch.zeros_like(t.bk),  # the softmax does not see it
            "wv": dwv,
            "bv": column_sum(dkv.chunk(2, dim=1)[1]),
            "wo": dwo,
            "bo": dbo,
            "x_weight": x_weight,
            "x_bias": x_bias,
            "latents_weight": latents_weight,
            "latents_bias": latents_bias,
        }
        return *(None,) * 7, *_blocks.like_inputs(grads, t, needs)


apply = Differentiable("fused_latent_resample", _Projected)


def run(
    x: Tensor,
    latents: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    bq: Optional,
    bk: Optional,
    bv: Optional,
    bo: Optional,
    x_norm: tuple[Tensor, Optional] | None,
    latents_norm: tuple[Tensor, Optional] | None,
    attend_latents: bool,
    mask: Optional,
    eps: float,
    method: str,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """The layer on a backend with kernels."""
    pairs = (*(x_norm or (None, None)), *(latents_norm or (None, None)))
    t = Tensors(x, latents, wq, bq, wk, bk, wv, bv, wo, bo, *pairs)
    o = Options(num_heads, num_kv_heads, attend_latents, eps, dtype, backend)
    itemsize = dtype.itemsize if backend == "triton" else None
    compiling = torch.compiler.is_compiling()
    if cost.choose(method, sizes(t, o), itemsize, any_length=compiling) == "absorbed":
        return absorbed.run(t, mask, o)
    y: Tensor = apply(mask, *o, *t)[0]
    return y.view(x.shape[0], latents.shape[-2], y.shape[1])
