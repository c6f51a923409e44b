"""Plain PyTorch; the definition of bias_gelu."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu

from jair_kernels._autograd import accumulate_dtype

Tensor = torch.Tensor


def bias_gelu_forward(h: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    """gelu(h + bias), h [R,M], bias [M]; in float32, for float64 in float64."""
    return gelu(_biased(h, bias), approximate=_form(tanh)).to(h.dtype)


def bias_gelu_backward(
    dg: Tensor, h: Tensor, bias: Tensor | None, tanh: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dh = dg gelu'(h + bias), g = gelu(h + bias), dbias = the sum of dh over rows, empty without a bias."""
    biased = _biased(h, bias)
    dh = torch.ops.aten.gelu_backward(dg.to(biased.dtype), biased, approximate=_form(tanh))
    dbias = h.new_empty((0,), dtype=biased.dtype) if bias is None else dh.sum(0).to(bias.dtype)
    return dh.to(h.dtype), gelu(biased, approximate=_form(tanh)).to(h.dtype), dbias


def _biased(h: Tensor, bias: Tensor | None) -> Tensor:
    wide = h.to(accumulate_dtype(h.dtype))
    return wide if bias is None else wide + bias.to(wide.dtype)


def _form(tanh: bool) -> str:
    return "tanh" if tanh else "none"
