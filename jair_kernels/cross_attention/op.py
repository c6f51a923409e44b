"""fused_cross_attention for the dispatcher: kernels, fake kernels, autograd, FLOP formulas.

The operators take and return token-major tensors, [B,L,h,d], as projections make them; the public function's
[B,h,L,d] are their transposes.
"""

from __future__ import annotations

from typing import Any

import torch

from jair_kernels import _operators
from jair_kernels._autograd import Differentiable, accumulate_dtype, cast, differentiable_once, grads_like
from jair_kernels._backends import kernel, register, register_block
from jair_kernels.cross_attention import cost

Tensor = torch.Tensor


def _fake_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_range: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    b, l, h, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((b, h, l, 2), dtype=accumulate_dtype(q.dtype))


def _fake_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kv_range: Tensor | None,
    o: Tensor | None,
    stats: Tensor,
    scale: float,
    packed: bool,
) -> tuple[Tensor, Tensor]:
    b, n, h_kv, d = k.shape
    if packed:
        return q.new_empty((b, n, 3, h_kv, d)), q.new_empty((0,))
    return q.new_empty(q.shape), q.new_empty((b, n, 2, h_kv, d))


def _unfit_triton(
    q: Tensor, *others: Tensor, head_width: int | None = None, dtype: torch.dtype | None = None
) -> str | None:
    """Products in full float32 keep both operands in registers, which wider heads overflow."""
    width = int(q.shape[3]) if head_width is None else head_width
    if (dtype or q.dtype) == torch.float32 and width > 64:
        return f"it takes head widths up to 64 in float32, got {width}"
    return None


def _forward_flops(q: Any, k: Any, *args: Any, **kwargs: Any) -> int:
    b, l, h, d = q
    return cost.forward_flops(b, h, l, k[1], d)


def _backward_flops(dout: Any, q: Any, k: Any, *args: Any, **kwargs: Any) -> int:
    b, l, h, d = q
    return cost.backward_flops(b, h, l, k[1], d)


_KERNELS = _operators.define(
    "cross_attention",
    _fake_forward,
    _fake_backward,
    (2, 2),
    folded=(range(5), range(8)),
    flops=(_forward_flops, _backward_flops),
    unfit=_unfit_triton,
    reads_result=("triton",),
)
register("fused_cross_attention", **_KERNELS)
register_block("cross_attention", **_KERNELS)


class _CrossAttention(torch.autograd.Function):
    """Saves q, k, v, the largest score and inverse sum of every softmax [B,h,L,2], and the result, which is
    token-major, where the kernel reads it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        kv_range: Tensor | None,
        scale: float,
        dtype: torch.dtype,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        run = kernel("fused_cross_attention", backend).forward
        o, stats = run(*(cast(t, dtype).transpose(1, 2) for t in (q, k, v)), mask, kv_range, scale)
        return o, stats

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale, ctx.dtype, ctx.backend = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *kernel("fused_cross_attention", ctx.backend).kept(output))

    @staticmethod
    @differentiable_once("fused_cross_attention")
    def backward(ctx: Any, do: Tensor | None, dstats: None) -> tuple[Tensor | None, ...]:
        if do is None:
            return (None,) * 8
        q, k, v, mask, kv_range, o, stats = ctx.saved_tensors
        run = kernel("fused_cross_attention", ctx.backend).backward
        inputs = (cast(t, ctx.dtype).transpose(1, 2) for t in (q, k, v))
        dq, dkv = run(do, *inputs, mask, kv_range, o, stats, ctx.scale, False)
        grads = (dq.transpose(1, 2), dkv[:, :, 0].transpose(1, 2), dkv[:, :, 1].transpose(1, 2))
        return *grads_like(grads, (q, k, v), ctx.needs_input_grad[:3]), None, None, None, None, None


apply = Differentiable("fused_cross_attention", _CrossAttention)
