"""gelu for the dispatcher: kernels and fake kernels. Autograd is that of the composed ops."""

from __future__ import annotations

import torch

from jair_kernels import _library, _triton, _vmap
from jair_kernels._autograd import accumulate_dtype
from jair_kernels._backends import Kernel, register_block


def _fake_forward(h: torch.Tensor, tanh: bool) -> torch.Tensor:
    return h.new_empty(h.shape)


def _fake_backward(
    dg: torch.Tensor, h: torch.Tensor, tanh: bool, sums: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = h.new_empty((h.shape[1] if sums else 0,), dtype=accumulate_dtype(h.dtype))
    return h.new_empty(h.shape), h.new_empty(h.shape), total


def _register() -> None:
    kernels = {}
    if _library.has_kernel("gelu", "CPU"):
        ops = torch.ops.jair_kernels
        torch.library.register_fake("jair_kernels::gelu_forward", _fake_forward)
        torch.library.register_fake("jair_kernels::gelu_backward", _fake_backward)
        _vmap.register("gelu", forward=(0,))
        kernels["cpu"] = Kernel(ops.gelu_forward.default, ops.gelu_backward.default)
    forward = _triton.define("gelu", "forward", _fake_forward, 1)
    backward = _triton.define("gelu", "backward", _fake_backward, 3)
    _vmap.register("gelu", forward=(0,), suffix="_triton")
    kernels["triton"] = Kernel(forward.default, backward.default)
    register_block("gelu", **kernels)


_register()
