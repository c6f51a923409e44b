"""Plain PyTorch; the definition of the block gelu."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu

from jair_kernels._autograd import accumulate_dtype

Tensor = torch.Tensor


def gelu_forward(h: Tensor, tanh: bool) -> Tensor:
    """gelu(h), h [R,M]; in float32, for float64 in float64."""
    return gelu(h.to(accumulate_dtype(h.dtype)), approximate=_form(tanh)).to(h.dtype)


def gelu_backward(dg: Tensor, h: Tensor, tanh: bool, sums: bool) -> tuple[Tensor, Tensor, Tensor]:
    """dh = dg gelu'(h), g = gelu(h), and the sums of dh over rows, which are the gradient of a bias in h:
    [M], or empty unless `sums`.
    """
    wide = h.to(accumulate_dtype(h.dtype))
    dh = torch.ops.aten.gelu_backward(dg.to(wide.dtype), wide, approximate=_form(tanh))
    return dh.to(h.dtype), gelu_forward(h, tanh), dh.sum(0) if sums else wide.new_empty((0,))


def _form(tanh: bool) -> str:
    return "tanh" if tanh else "none"
