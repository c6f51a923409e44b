"""add_norm for the dispatcher: kernels and fake kernels. Autograd is that of the composed ops."""

from __future__ import annotations

import torch

from jair_kernels import _operators
from jair_kernels._autograd import accumulate_dtype, like_parameter
from jair_kernels._backends import register_block


def _fake_forward(
    x: torch.Tensor,
    x_stats: torch.Tensor | None,
    x_weight: torch.Tensor | None,
    x_bias: torch.Tensor | None,
    update: torch.Tensor | None,
    gate: torch.Tensor | None,
    norm: bool,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = x.new_empty((0,) if x_stats is None and update is None else x.shape)
    stats = x.new_empty((x.shape[0], 2) if norm else (0,), dtype=accumulate_dtype(x.dtype))
    return z, x.new_empty(x.shape if norm else (0,)), stats


def _fake_backward(
    dy: torch.Tensor,
    dz: torch.Tensor | None,
    z: torch.Tensor,
    stats: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return z.new_empty(z.shape), like_parameter(weight, z), like_parameter(bias, z)


_KERNELS = _operators.define("add_norm", _fake_forward, _fake_backward, (3, 3), folded=((0, 1, 4), ()))
register_block("add_norm", **_KERNELS)
