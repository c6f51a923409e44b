"""Plain PyTorch that the references share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from jair_kernels._checks import autocast_dtype

Tensor = torch.Tensor
Function = TypeVar("Function", bound=Callable[..., Tensor])


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last axis; parameters of a wider dtype widen the result, as in arithmetic."""
    wide = x.dtype  # layer_norm itself wants one dtype
    for t in (weight, bias):
        wide = wide if t is None else torch.promote_types(wide, t.dtype)
    scale, shift = (None if t is None else t.to(wide) for t in (weight, bias))
    return F.layer_norm(x.to(wide), x.shape[-1:], scale, shift, eps)


def heads(x: Tensor, count: int) -> Tensor:
    """[B,N,h d] as [B,h,N,d]."""
    split: Tensor = x.unflatten(-1, (count, -1))
    return split.transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B,h,N,d] as [B,N,h d]."""
    return x.transpose(1, 2).flatten(2)


def zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B,N,D] with masked tokens 0: before any arithmetic, so that a NaN in one reaches nothing."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)


def mlp(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, approximate: str) -> Tensor:
    """w2 gelu(w1 x + b1) + b2."""
    return F.linear(F.gelu(F.linear(x, w1, b1), approximate=approximate), w2, b2)


def in_autocast_dtype(function: Function) -> Function:
    """Decorates a reference: under autocast every floating input is cast to the autocast dtype, and so is
    everything in between; PyTorch's own rules would leave residuals and norms in float32 and return that.
    """

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        if isinstance(value, tuple):
            items = [cast(item, dtype) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> Tensor:
        main: Tensor = next(iter((*args, *named.values())))
        dtype = autocast_dtype(main)
        if dtype is None:
            return function(*args, **named)
        rounded = {name: cast(value, dtype) for name, value in named.items()}
        with torch.autocast(main.device.type, enabled=False):
            return function(*cast(args, dtype), **rounded)

    return run  # type: ignore[return-value]
