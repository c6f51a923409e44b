"""fused_token_pool for the dispatcher: kernels, fake kernels, autograd, FLOP formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from jair_kernels import _library, _triton, _vmap
from jair_kernels._autograd import Differentiable, accumulate_dtype, cast, differentiable_once, grads_like
from jair_kernels._backends import Kernel, kernel, register
from jair_kernels.token_pool import cost


def _fake_forward(
    x: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor | None, sigmoid: bool, mean: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    b, _, d = x.shape
    k = scores.shape[2]
    softmax = x.new_empty((0,) if sigmoid else (b, k, 2), dtype=accumulate_dtype(x.dtype))
    return x.new_empty((b, k, d)), softmax


def _fake_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    scores: torch.Tensor,
    mask: torch.Tensor | None,
    y: torch.Tensor | None,
    softmax: torch.Tensor,
    sigmoid: bool,
    mean: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(scores.shape)


def _unfit_triton(x: torch.Tensor, scores: torch.Tensor) -> str | None:
    return _triton.unfit(scores.shape[2])


def _count(forward: Any, backward: Any) -> None:
    @register_flop_formula(forward)
    def _(x: Any, scores: Any, *args: Any, **kwargs: Any) -> int:
        b, n, d = x
        return cost.forward_flops(b, n, d, scores[2])

    @register_flop_formula(backward)
    def _(dy: Any, x: Any, *args: Any, **kwargs: Any) -> int:
        b, n, d = x
        return cost.backward_flops(b, n, d, dy[1])


def _register() -> None:
    kernels = {}
    if _library.has_kernel("token_pool", "CPU"):
        ops = torch.ops.jair_kernels
        torch.library.register_fake("jair_kernels::token_pool_forward", _fake_forward)
        torch.library.register_fake("jair_kernels::token_pool_backward", _fake_backward)
        _vmap.register("token_pool", forward=(0, 1, 2), backward=(0, 1, 2, 3, 4, 5))
        kernels["cpu"] = Kernel(ops.token_pool_forward.default, ops.token_pool_backward.default)
        if _library.has_kernel("token_pool", "CUDA"):
            kernels["cuda"] = kernels["cpu"]
        _count(ops.token_pool_forward, ops.token_pool_backward)
    forward = _triton.define("token_pool", "forward", _fake_forward, 2)
    backward = _triton.define("token_pool", "backward", _fake_backward, 2)
    _vmap.register("token_pool", forward=(0, 1, 2), backward=(0, 1, 2, 3, 4, 5), suffix="_triton")
    kernels["triton"] = Kernel(forward.default, backward.default, _unfit_triton, reads_result=True)
    _count(forward, backward)

    register("fused_token_pool", **kernels)


_register()


class _TokenPool(torch.autograd.Function):
    """Saves x, scores, max and 1/sum of every softmax [B,K,2], and y where the kernel reads it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor,
        scores: torch.Tensor,
        mask: torch.Tensor | None,
        sigmoid: bool,
        mean: bool,
        dtype: torch.dtype,
        backend: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        run = kernel("fused_token_pool", backend).forward
        y, softmax = run(cast(x, dtype), cast(scores, dtype), mask, sigmoid, mean)
        return y, softmax

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, scores, mask, *ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, scores, mask, *kernel("fused_token_pool", ctx.options[-1]).kept(output))

    @staticmethod
    @differentiable_once("fused_token_pool")
    def backward(ctx: Any, dy: torch.Tensor | None, dsoftmax: None) -> tuple[torch.Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        x, scores, mask, y, softmax = ctx.saved_tensors
        sigmoid, mean, dtype, backend = ctx.options
        run = kernel("fused_token_pool", backend).backward
        grads = run(dy, cast(x, dtype), cast(scores, dtype), mask, y, softmax, sigmoid, mean)
        return *grads_like(grads, (x, scores), ctx.needs_input_grad[:2]), None, None, None, None, None


apply = Differentiable("fused_token_pool", _TokenPool)
