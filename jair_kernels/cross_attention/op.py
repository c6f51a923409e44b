"""fused_cross_attention for the dispatcher: kernels, fake kernels, autograd, FLOP formulas.

The operators take and return token-major tensors, [B,L,h,d], as projections make them; the public function's
[B,h,L,d] are their transposes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from jair_kernels import _library, _triton, _vmap
from jair_kernels._autograd import Differentiable, accumulate_dtype, cast, differentiable_once, grads_like
from jair_kernels._backends import Kernel, kernel, register, register_block
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


def _unfit_triton(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Products in full float32 keep both operands in registers, which wider heads overflow."""
    if q.dtype == torch.float32 and q.shape[3] > 64:
        return f"it takes head widths up to 64 in float32, got {int(q.shape[3])}"
    return None


def _count(forward: Any, backward: Any) -> None:
    @register_flop_formula(forward)
    def _(q: Any, k: Any, *args: Any, **kwargs: Any) -> int:
        b, l, h, d = q
        return cost.forward_flops(b, h, l, k[1], d)

    @register_flop_formula(backward)
    def _(dout: Any, q: Any, k: Any, *args: Any, **kwargs: Any) -> int:
        b, l, h, d = q
        return cost.backward_flops(b, h, l, k[1], d)


def _register() -> None:
    kernels = {}
    if _library.has_kernel("cross_attention", "CPU"):
        ops = torch.ops.jair_kernels
        torch.library.register_fake("jair_kernels::cross_attention_forward", _fake_forward)
        torch.library.register_fake("jair_kernels::cross_attention_backward", _fake_backward)
        _vmap.register("cross_attention", forward=range(5), backward=range(8))
        kernels["cpu"] = Kernel(ops.cross_attention_forward.default, ops.cross_attention_backward.default)
        _count(ops.cross_attention_forward, ops.cross_attention_backward)
    forward = _triton.define("cross_attention", "forward", _fake_forward, 2)
    backward = _triton.define("cross_attention", "backward", _fake_backward, 2)
    _vmap.register("cross_attention", forward=range(5), backward=range(8), suffix="_triton")
    kernels["triton"] = Kernel(forward.default, backward.default, _unfit_triton, reads_result=True)
    _count(forward, backward)
    register("fused_cross_attention", **kernels)
    register_block("cross_attention", **kernels)


_register()


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
