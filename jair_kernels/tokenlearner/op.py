"""fused_tokenlearner for the dispatcher: kernels, fake kernels, autograd, FLOP formulas."""

from __future__ import annotations

from typing import Any

import torch

from jair_kernels import _library, _operators, _triton
from jair_kernels._autograd import (
    Differentiable,
    accumulate_dtype,
    cast,
    differentiable_once,
    grads_like,
    like_parameter,
)
from jair_kernels._backends import kernel, register
from jair_kernels.tokenlearner import cost, passes

Tensor = torch.Tensor


def _fake_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mask: Tensor | None,
    eps: float,
    tanh: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (b, n, d), (k, h), statistic = x.shape, w2.shape, accumulate_dtype(x.dtype)
    return (
        x.new_empty((b, k, d)),
        x.new_empty((b, k, 2), dtype=statistic),
        x.new_empty((b, n, 2), dtype=statistic),
        x.new_empty((b, n, h if keep else 0)),
    )


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mask: Tensor | None,
    y: Tensor | None,
    softmax: Tensor,
    stats: Tensor,
    hidden: Tensor,
    tanh: bool,
) -> tuple[Tensor, ...]:
    parameters = (w1, b1, w2, b2, norm_weight, norm_bias)
    return (x.new_empty(x.shape), *(like_parameter(p, x) for p in parameters))


def _unfit_triton(x: Tensor, w1: Tensor | None = None, w2: Tensor | None = None) -> str | None:
    return None if w2 is None else _triton.unfit(w2.shape[0])


def _forward_flops(x: Any, w1: Any, b1: Any, w2: Any, *args: Any, **kwargs: Any) -> int:
    return cost.forward_flops(x[0], x[1], x[2], w2[1], w2[0])


def _backward_flops(dy: Any, x: Any, w1: Any, b1: Any, w2: Any, *args: Any, **kwargs: Any) -> int:
    return cost.backward_flops(x[0], x[1], x[2], w2[1], w2[0])


_KERNELS = _operators.define(
    "tokenlearner",
    _fake_forward,
    _fake_backward,
    (4, 7),
    folded=((0, 7), ()),
    flops=(_forward_flops, _backward_flops),
    unfit=_unfit_triton,
    unfit_cuda=passes.unfit if _library.has_operator("tokenlearner_pool", "CUDA") else None,
    reads_result=("cuda",),
)
register("fused_tokenlearner", **_KERNELS)


class _TokenLearner(torch.autograd.Function):
    """Saves x, max and 1/sum of softmaxes [B,K,2], mean and 1/std of tokens [B,N,2]; the hidden layer
    [B,N,H] where `cost.keeps_hidden`; y where it is read.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        mask: Tensor | None,
        eps: float,
        tanh: bool,
        dtype: torch.dtype,
        backend: str,
        recorded: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        run = kernel("fused_tokenlearner", backend).forward
        parameters = (w1, b1, w2, b2, norm_weight, norm_bias)
        keep = recorded and cost.keeps_hidden(dtype, x.shape[2], w1.shape[0])
        y, softmax, stats, hidden = run(cast(x, dtype), *parameters, mask, eps, tanh, keep)
        return y, softmax, stats, hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, ctx.tanh, ctx.dtype, ctx.backend, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *kernel("fused_tokenlearner", ctx.backend).kept(output))

    @staticmethod
    @differentiable_once("fused_tokenlearner")
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 13
        x, *parameters, mask, y, softmax, stats, hidden = ctx.saved_tensors
        run = kernel("fused_tokenlearner", ctx.backend).backward
        grads = run(dy, cast(x, ctx.dtype), *parameters, mask, y, softmax, stats, hidden, ctx.tanh)
        inputs = (x, *parameters)
        return *grads_like(grads, inputs, ctx.needs_input_grad[:7]), *(None,) * 6


apply = Differentiable("fused_tokenlearner", _TokenLearner, tells=True)
