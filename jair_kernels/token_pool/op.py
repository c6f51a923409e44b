"""fused_token_pool for the dispatcher: kernels, fake kernels, autograd, FLOP formulas."""

from __future__ import annotations

from typing import Any

import torch

from jair_kernels import _operators, _triton
from jair_kernels._autograd import Differentiable, accumulate_dtype, cast, differentiable_once, grads_like
from jair_kernels._backends import kernel, register
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


def _unfit_triton(x: torch.Tensor, scores: torch.Tensor | None = None) -> str | None:
    return None if scores is None else _triton.unfit(scores.shape[2])


def _forward_flops(x: Any, scores: Any, *args: Any, **kwargs: Any) -> int:
    b, n, d = x
    return cost.forward_flops(b, n, d, scores[2])


def _backward_flops(dy: Any, x: Any, *args: Any, **kwargs: Any) -> int:
    b, n, d = x
    return cost.backward_flops(b, n, d, dy[1])


_KERNELS = _operators.define(
    "token_pool",
    _fake_forward,
    _fake_backward,
    (2, 2),
    folded=((0, 1, 2), (0, 1, 2, 3, 4, 5)),
    flops=(_forward_flops, _backward_flops),
    unfit=_unfit_triton,
    reads_result=("triton",),
)
register("fused_token_pool", **_KERNELS)


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
