"""A plain-PyTorch expression in float64 with the rounding errors of a lower precision, scaled down.

Within `rounded(draw)` the result of every product, softmax, norm and activation carries relative errors of
size TINY and random sign, and so does the gradient that passes it. What that does to outputs and gradients,
divided by TINY, is what one unit in the last place of every intermediate may do to them: the least that any
implementation can promise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Tensor = torch.Tensor

TINY = 2.0**-26  # stands for a derivative in float64

_PRODUCTS = ("mul", "__mul__")
_ROUNDED = (
    "softmax",
    "sigmoid",
    "matmul",
    "__matmul__",
    "linear",
    "layer_norm",
    "gelu",
    "tanh",
    "add",
    "__add__",
    *_PRODUCTS,
)


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random +1 and -1."""
    return torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1


class _Rounded(torch.autograd.Function):
    """x, and the gradient on its way back, each with errors of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, generator: torch.Generator) -> Tensor:
        ctx.generator = generator
        return x * (1 + TINY * signs(x, generator))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * (1 + TINY * signs(grad, ctx.generator)), None


class _RoundedSoftmax(torch.autograd.Function):
    """softmax over an axis. dS = p (dP - delta) is a difference whose terms are rounded, which for one key,
    equal keys or one dominant weight is all that is left of it.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, dim: int, generator: torch.Generator) -> Tensor:
        p = scores.softmax(dim)
        p = p * (1 + TINY * signs(p, generator))
        ctx.save_for_backward(p)
        ctx.dim, ctx.generator = dim, generator
        return p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (p,) = ctx.saved_tensors
        terms = p * grad
        delta = terms.sum(ctx.dim, keepdim=True)
        noise = terms * signs(terms, ctx.generator) - p * delta * signs(delta, ctx.generator)
        return terms - p * delta + TINY * noise, None, None


class _RoundedLayerNorm(torch.autograd.Function):
    """LayerNorm over the last axis, without its scale and shift. dx = rstd (g - mean g - y mean(g y)) is a
    difference whose terms are rounded; of width 2 hardly more than that is left of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        centred = x - mean * (1 + TINY * signs(mean, generator))
        rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
        y = centred * rstd
        ctx.save_for_backward(y, rstd)
        ctx.generator = generator
        return y * (1 + TINY * signs(y, generator))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        y, rstd = ctx.saved_tensors
        terms = [grad, -grad.mean(-1, keepdim=True).expand_as(y), -y * (grad * y).mean(-1, keepdim=True)]
        return sum(rstd * term * (1 + TINY * signs(y, ctx.generator)) for term in terms), None, None


class _Mode(TorchFunctionMode):
    def __init__(self, draw: int, only: Collection[str]) -> None:
        super().__init__()
        self.only = only
        self.generator = torch.Generator().manual_seed(draw)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        options = kwargs or {}
        if name == "softmax" and name in self.only:
            return _RoundedSoftmax.apply(
                args[0], options.get("dim", args[1] if len(args) > 1 else -1), self.generator
            )
        if name == "layer_norm" and name in self.only:
            return self.layer_norm(*args, **options)
        result = func(*args, **options)
        if name in self.only and isinstance(result, Tensor) and result.is_floating_point():
            return _Rounded.apply(result, self.generator)
        return result

    def layer_norm(
        self,
        x: Tensor,
        shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        y: Tensor = _RoundedLayerNorm.apply(x, eps, self.generator)
        y = y if weight is None else _Rounded.apply(y * weight, self.generator)
        return y if bias is None else _Rounded.apply(y + bias, self.generator)


@contextmanager
def rounded(draw: int, products_alone: bool = False) -> Iterator[None]:
    """Within the block PyTorch computes with the errors of this draw; or with those of products alone."""
    with _Mode(draw, _PRODUCTS if products_alone else _ROUNDED):
        yield
