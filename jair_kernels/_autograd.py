"""What the autograd functions of all ops share."""

from __future__ import annotations

import torch


def grad_like(grad: torch.Tensor, parameter: torch.Tensor | None) -> torch.Tensor | None:
    """A kernel's gradient (accumulation dtype; empty for an absent parameter) in the parameter's own dtype."""
    return None if parameter is None else grad.to(parameter.dtype)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels keep statistics and return parameter gradients."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def like_parameter(parameter: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Fake gradient of a parameter, as the kernels return it."""
    shape = (0,) if parameter is None else parameter.shape
    return x.new_empty(shape, dtype=accumulate_dtype(x.dtype))
