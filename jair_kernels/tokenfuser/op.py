"""fused_tokenfuser for the dispatcher: kernels, fake kernels, autograd, FLOP formulas."""

from __future__ import annotations

from typing import Any

import torch

from jair_kernels import _operators, _triton
from jair_kernels._autograd import (
    Differentiable,
    accumulate_dtype,
    cast,
    differentiable_once,
    grads_like,
    like_parameter,
)
from jair_kernels._backends import kernel, register
from jair_kernels.tokenfuser import cost
from jair_kernels.tokenlearner.cost import keeps_hidden

Tensor = torch.Tensor


def _fake_forward(
    x: Tensor,
    tokens: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    tanh: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    b, n, _ = x.shape
    return (
        x.new_empty(x.shape),
        x.new_empty((b, n, 2), dtype=accumulate_dtype(x.dtype)),
        x.new_empty((b, n, w1.shape[0] if keep else 0)),
    )


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    tokens: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    stats: Tensor,
    hidden: Tensor,
    tanh: bool,
) -> tuple[Tensor, ...]:
    parameters = (w1, b1, w2, b2, norm_weight, norm_bias)
    return (x.new_empty(x.shape), x.new_empty(tokens.shape), *(like_parameter(p, x) for p in parameters))


def _unfit_triton(
    x: Tensor, tokens: Tensor | None = None, w1: Tensor | None = None, w2: Tensor | None = None
) -> str | None:
    return None if w2 is None else _triton.unfit(w2.shape[0])


def _forward_flops(x: Any, tokens: Any, w1: Any, b1: Any, w2: Any, *args: Any, **kwargs: Any) -> int:
    return cost.forward_flops(x[0], x[1], x[2], w2[1], w2[0])


def _backward_flops(
    dy: Any, x: Any, tokens: Any, w1: Any, b1: Any, w2: Any, *args: Any, **kwargs: Any
) -> int:
    return cost.backward_flops(x[0], x[1], x[2], w2[1], w2[0])


_KERNELS = _operators.define(
    "tokenfuser",
    _fake_forward,
    _fake_backward,
    (3, 8),
    folded=((0, 1), ()),
    flops=(_forward_flops, _backward_flops),
    unfit=_unfit_triton,
)
register("fused_tokenfuser", **_KERNELS)


class _TokenFuser(torch.autograd.Function):
    """Saves x, the tokens, mean and 1/std of every row of x [B,N,2], the hidden layer [B,N,H] where
    `keeps_hidden`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        tokens: Tensor,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        tanh: bool,
        dtype: torch.dtype,
        backend: str,
        recorded: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        run = kernel("fused_tokenfuser", backend).forward
        parameters = (w1, b1, w2, b2, norm_weight, norm_bias)
        keep = recorded and keeps_hidden(dtype, x.shape[2], w1.shape[0])
        y, stats, hidden = run(cast(x, dtype), cast(tokens, dtype), *parameters, eps, tanh, keep)
        return y, stats, hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, ctx.tanh, ctx.dtype, ctx.backend, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    @differentiable_once("fused_tokenfuser")
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 13
        x, tokens, *parameters, stats, hidden = ctx.saved_tensors
        run = kernel("fused_tokenfuser", ctx.backend).backward
        grads = run(dy, cast(x, ctx.dtype), cast(tokens, ctx.dtype), *parameters, stats, hidden, ctx.tanh)
        inputs = (x, tokens, *parameters)
        return *grads_like(grads, inputs, ctx.needs_input_grad[:8]), *(None,) * 5


apply = Differentiable("fused_tokenfuser", _TokenFuser, tells=True)
