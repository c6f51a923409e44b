"""The absorbed form: keys are scored and pooled as they are; wk moves into the queries, wv behind that.

With head i of group g, scale the softmax's, and xhat the tokens normalised without their
scale gamma and shift beta,

    queries_i = scale q_i (wk_g diag(gamma))    (beta and bk cancel in the softmax)
    scores = queries xhat^T
    out_i = (softmax(scores) xhat) (wv_g diag(gamma))^T + (bv_g + wv_g beta)

so that gradients of gamma and beta are sums over weight gradients, and no token is normalised in memory.
Where the latents are attended too, all keys are written down, and gamma = 1, beta = 0 above.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from jair_kernels import _blocks
from jair_kernels._autograd import Differentiable, accumulate_dtype, cast, differentiable_once
from jair_kernels._backends import block
from jair_kernels._direct import watched
from jair_kernels._plain import zero_masked
from jair_kernels._products import product
from jair_kernels._sums import column_sum
from jair_kernels.latent_resample.arguments import (
    Options,
    Tensors,
    extended,
    keys_of,
    latent_rows,
    norms,
    samples,
    sum_if,
    token_rows,
)

Tensor = torch.Tensor
Optional = Tensor | None


class _Weights(NamedTuple):
    """Weights by group of heads with gamma and beta folded in; `folded` where that changes them."""

    wk: Tensor  # [g, d, D_kv]
    wv: Tensor  # [g, d, D_kv]
    bv: Optional  # [g, d] in the accumulate dtype
    folded: bool


def _weights(t: Tensors, o: Options) -> _Weights:
    wide = accumulate_dtype(o.dtype)
    folded = t.x_weight is not None and not o.attend_latents
    bv = None if t.bv is None else t.bv.to(wide)
    wk, wv = t.wk, t.wv
    if folded and t.x_weight is not None:
        if t.x_bias is not None:
            shift = wv.to(wide) @ t.x_bias.to(wide)
            bv = shift if bv is None else bv + shift
        if not (wk.dtype == wv.dtype == t.x_weight.dtype == o.dtype):  # one dtype is rounded once anyway
            wk, wv = wk.to(wide), wv.to(wide)
        scale = t.x_weight.to(wk.dtype)
        wk, wv = wk * scale, wv * scale
    split = (o.kv_heads, t.wk.shape[0] // o.kv_heads, t.wk.shape[1])
    wk, wv = (cast(w, o.dtype).reshape(split) for w in (wk, wv))
    return _Weights(wk, wv, None if bv is None else bv.view(split[:2]), folded)


def _to_groups(rows: Tensor, g: int) -> Tensor:
    """[S,L,h,d] as [g, S L r, d] with r = h / g; a view where every head has its own keys."""
    s, l, h, d = rows.shape
    return rows.view(s * l, g, h // g, d).transpose(0, 1).reshape(g, s * l * (h // g), d)


def _times(rows: Tensor, weights: Tensor) -> Tensor:
    """Every head's rows [S,L,h,a] times the weight of its group, of weights [g,a,c]: [S,L,h,c]."""
    (s, l, h, _), (g, _, width) = rows.shape, weights.shape
    grouped = _to_groups(rows, g)
    if rows.is_cuda and h == g and not watched():
        # Where it belongs: the rows of a pooling are as many bytes as the tokens, or more.
        projected = rows.new_empty((s * l, g, width))
        torch.bmm(grouped, weights, out=projected.transpose(0, 1))
    else:
        projected = torch.bmm(grouped, weights).view(g, s * l, h // g, width).transpose(0, 1)
    return projected.reshape(s, l, h, width)


def _queries(t: Tensors, o: Options, z: Tensor, weights: _Weights) -> tuple[Tensor, Tensor]:
    """(scale q, queries [S, L h, D_kv]) from the normalised latents."""
    d = t.wq.shape[0] // o.num_heads
    q = _blocks.linear(z, cast(t.wq, o.dtype), t.bq) * d**-0.5
    q = q.view(samples(t), t.latents.shape[-2], o.num_heads, d)
    return q, _times(q, weights.wk).flatten(1, 2)


def _empty(softmax: Tensor, l: int) -> Tensor:
    """[B,L,h,1]: where there was nothing to attend, and the inverse of the softmax's sum is 0."""
    b, count, _ = softmax.shape
    return (softmax[..., 1] == 0).view(b, l, count // l, 1)


class _Absorbed(torch.autograd.Function):
    """Saves inputs, the pooled keys [B,L h,D_kv], the attention's output, max and 1/sum, statistics."""

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
        b, l = t.x.shape[0], t.latents.shape[-2]
        latents, z, stats_z = latent_rows(t, o)
        weights = _weights(t, o)
        _q, queries = _queries(t, o, z, weights)
        keys, stats_keys = cast(t.x, dtype), t.x.new_empty((0,))
        if attend_latents:
            _rows, normed, stats_keys = token_rows(t, mask, o)
            keys = keys_of(normed, z.view(latents.shape), b, t.x.shape[1], o)
        pool = block("query_pool", backend).forward
        pooled, softmax, stats = pool(keys, queries, extended(mask, t, o), weights.folded, eps)
        out = _times(pooled.unflatten(1, (l, num_heads)), weights.wv.mT)
        if weights.bv is not None:
            out = out + weights.bv.to(dtype).repeat_interleave(num_heads // kv_heads, 0)
        if mask is not None and not attend_latents:
            out = out.masked_fill(_empty(softmax, l), 0)
        y = _blocks.linear(out.flatten(0, 1).flatten(1), cast(t.wo, dtype), t.bo)
        return y, pooled, out, softmax, stats, stats_z, stats_keys

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
        t, (pooled, out, softmax, stats, stats_z, stats_keys) = Tensors(*saved[:count]), saved[count:]
        o = Options(*ctx.options)
        needs: Any = Tensors(*ctx.needs_input_grad[7:])
        b, l = t.x.shape[0], t.latents.shape[-2]
        x_norm, latents_norm = norms(t, o)
        latents = latent_rows(t, o, stats_z)[0]
        z = _blocks.norm_again(o.backend, latents.flatten(0, -2), stats_z, latents_norm)
        weights = _weights(t, o)
        q, queries = _queries(t, o, z, weights)

        dy = cast(dy, o.dtype)
        last = _blocks.Gated(cast(t.wo, o.dtype), t.bo, None, o.backend)
        dwo, dbo, _gate = last.backward(dy, out.flatten(0, 1).flatten(1), (needs.wo, needs.bo, False))
        dout = last.through(dy).view(out.shape)
        if mask is not None and not o.attend_latents:
            dout = dout.masked_fill(_empty(softmax, l), 0)
        dpooled = _times(dout, weights.wv).flatten(1, 2)
        dout = _to_groups(dout, o.kv_heads)
        dwv = torch.bmm(dout.mT, _to_groups(pooled.unflatten(1, (l, o.num_heads)), o.kv_heads)).flatten(0, 1)
        dbv = dout.sum(1, dtype=accumulate_dtype(o.dtype)).flatten()

        keys, rows = cast(t.x, o.dtype), None
        if o.attend_latents:
            rows = token_rows(t, mask, o, stats_keys)[0]
            normed = _blocks.norm_again(o.backend, rows, stats_keys, x_norm)
            keys = keys_of(normed, z.view(latents.shape), b, t.x.shape[1], o)
        pool = block("query_pool", o.backend).backward
        dkeys, dqueries = pool(
            dpooled, keys, queries, extended(mask, t, o), pooled, softmax, stats, weights.folded
        )
        dqueries = dqueries.unflatten(1, (l, o.num_heads))
        dwk = torch.bmm(_to_groups(q, o.kv_heads).mT, _to_groups(dqueries, o.kv_heads)).flatten(0, 1)
        dq = _times(dqueries, weights.wk.mT) * q.shape[3] ** -0.5
        dq = dq.flatten(0, 1).flatten(1)
        dz = product(dq, cast(t.wq, o.dtype))

        if rows is None:
            dx, x_weight, x_bias = dkeys, *_unfold(t, dwk, dwv, dbv)
            if weights.folded and t.x_weight is not None:
                wide = dbv.dtype
                scale = t.x_weight.to(wide)
                dwk, dwv = dwk.to(wide) * scale, dwv.to(wide) * scale
                if t.x_bias is not None:
                    dwv = dwv + torch.outer(dbv, t.x_bias.to(wide))
        else:
            appended = sum_if(dkeys[:, t.x.shape[1] :], t.latents.dim() == 2)
            dz = dz + appended.reshape(dz.shape)
            tokens = dkeys[:, : t.x.shape[1]].reshape(rows.shape)
            dx, x_weight, x_bias = _blocks.norm_backward(o.backend, tokens, None, rows, stats_keys, x_norm)
            dx = zero_masked(dx.view(t.x.shape), mask)
        dlatents, latents_weight, latents_bias = _blocks.norm_backward(
            o.backend, dz, None, latents.flatten(0, -2), stats_z, latents_norm
        )
        grads = {
            "x": dx,
            "latents": dlatents.view(t.latents.shape),
            "wq": product(dq.mT, z),
            "bq": column_sum(dq),
            "wk": dwk,
            "bk": None if t.bk is None else torch.zeros_like(t.bk),  # the softmax does not see it
            "wv": dwv,
            "bv": dbv,
            "wo": dwo,
            "bo": dbo,
            "x_weight": x_weight,
            "x_bias": x_bias,
            "latents_weight": latents_weight,
            "latents_bias": latents_bias,
        }
        return *(None,) * 7, *_blocks.like_inputs(grads, t, needs)


def _unfold(t: Tensors, dwk: Tensor, dwv: Tensor, dbv: Tensor) -> tuple[Optional, Optional]:
    """Gradients of gamma and beta from those of the folded weights."""
    if t.x_weight is None:
        return None, None
    wide = dbv.dtype
    along = (dwk.to(wide) * t.wk.to(wide)).sum(0) + (dwv.to(wide) * t.wv.to(wide)).sum(0)
    return along, dbv @ t.wv.to(wide) if t.x_bias is not None else None


apply = Differentiable("fused_latent_resample", _Absorbed)


def run(t: Tensors, mask: Optional, o: Options) -> Tensor:
    """The layer in its absorbed form."""
    y: Tensor = apply(mask, *o, *t)[0]
    return y.view(t.x.shape[0], t.latents.shape[-2], y.shape[1])
