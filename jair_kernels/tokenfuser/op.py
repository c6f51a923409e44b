"""fused_tokenfuser for the dispatcher: kernels, fake kernels, autograd, FLOP formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from jair_kernels import _library, _triton
from jair_kernels._autograd import accumulate_dtype, grad_like, like_parameter
from jair_kernels._backends import Kernel, kernel, register
from jair_kernels.tokenfuser import cost

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
) -> tuple[Tensor, Tensor]:
    b, n, _ = x.shape
    return x.new_empty(x.shape), x.new_empty((b, n, 2), dtype=accumulate_dtype(x.dtype))


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
    tanh: bool,
) -> tuple[Tensor, ...]:
    parameters = (w1, b1, w2, b2, norm_weight, norm_bias)
    return (x.new_empty(x.shape), x.new_empty(tokens.shape), *(like_parameter(p, x) for p in parameters))


def _unfit_triton(x: Tensor, tokens: Tensor, w1: Tensor, w2: Tensor) -> str | None:
    return _triton.unfit(w2.shape[0])


def _count(forward: Any, backward: Any) -> None:
    @register_flop_formula(forward)
    def _(x: Any, tokens: Any, w1: Any, b1: Any, w2: Any, *args: Any, **kwargs: Any) -> int:
        return cost.forward_flops(*x, *w2[::-1])

    @register_flop_formula(backward)
    def _(dy: Any, x: Any, tokens: Any, w1: Any, b1: Any, w2: Any, *args: Any, **kwargs: Any) -> int:
        return cost.backward_flops(*x, *w2[::-1])


def _register() -> None:
    kernels = {}
    if _library.load_error is None:
        ops = torch.ops.jair_kernels
        torch.library.register_fake("jair_kernels::tokenfuser_forward", _fake_forward)
        torch.library.register_fake("jair_kernels::tokenfuser_backward", _fake_backward)
        kernels["cpu"] = Kernel(ops.tokenfuser_forward.default, ops.tokenfuser_backward.default)
        _count(ops.tokenfuser_forward, ops.tokenfuser_backward)
    forward = _triton.define("tokenfuser", "forward", _fake_forward, 2)
    backward = _triton.define("tokenfuser", "backward", _fake_backward, 8)
    kernels["triton"] = Kernel(forward.default, backward.default, _unfit_triton)
    _count(forward, backward)
    register("fused_tokenfuser", **kernels)


_register()


class TokenFuser(torch.autograd.Function):
    """Saves x, the tokens and mean and 1/std of every row of x [B,N,2]."""

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
    ) -> tuple[Tensor, Tensor]:
        run = kernel("fused_tokenfuser", backend).forward
        y, stats = run(x.to(dtype), tokens.to(dtype), w1, b1, w2, b2, norm_weight, norm_bias, eps, tanh)
        return y, stats

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, _, ctx.tanh, ctx.dtype, ctx.backend = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 12
        x, tokens, *parameters, stats = ctx.saved_tensors
        run = kernel("fused_tokenfuser", ctx.backend).backward
        dx, dtokens, *grads = run(dy, x.to(ctx.dtype), tokens.to(ctx.dtype), *parameters, stats, ctx.tanh)
        grads = map(grad_like, grads, parameters)
        return (dx.to(x.dtype), dtokens.to(tokens.dtype), *grads, None, None, None, None)
