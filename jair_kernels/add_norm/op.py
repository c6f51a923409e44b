"""add_norm for the dispatcher: kernels and fake kernels. Autograd is that of the composed ops."""

from __future__ import annotations

import torch

from jair_kernels import _library, _triton, _vmap
from jair_kernels._autograd import accumulate_dtype, like_parameter
from jair_kernels._backends import Kernel, register_block


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


def _register() -> None:
    kernels = {}
    if _library.has_kernel("add_norm", "CPU"):
        ops = torch.ops.jair_kernels
        torch.library.register_fake("jair_kernels::add_norm_forward", _fake_forward)
        torch.library.register_fake("jair_kernels::add_norm_backward", _fake_backward)
        _vmap.register("add_norm", forward=(0, 1, 4))
        kernels["cpu"] = Kernel(ops.add_norm_forward.default, ops.add_norm_backward.default)
    forward = _triton.define("add_norm", "forward", _fake_forward, 3)
    backward = _triton.define("add_norm", "backward", _fake_backward, 3)
    _vmap.register("add_norm", forward=(0, 1, 4), suffix="_triton")
    kernels["triton"] = Kernel(forward.default, backward.default)
    register_block("add_norm", **kernels)


_register()
