"""bias_gelu for the dispatcher: kernels and fake kernels. Autograd is that of the composed ops."""

from __future__ import annotations

import torch

from jair_kernels import _library, _triton, _vmap
from jair_kernels._autograd import like_parameter
from jair_kernels._backends import Kernel, register_block


def _fake_forward(h: torch.Tensor, bias: torch.Tensor | None, tanh: bool) -> torch.Tensor:
    return h.new_empty(h.shape)


def _fake_backward(
    dg: torch.Tensor, h: torch.Tensor, bias: torch.Tensor | None, tanh: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape), like_parameter(bias, h)


def _register() -> None:
    kernels = {}
    if _library.has_kernel("bias_gelu", "CPU"):
        ops = torch.ops.jair_kernels
        torch.library.register_fake("jair_kernels::bias_gelu_forward", _fake_forward)
        torch.library.register_fake("jair_kernels::bias_gelu_backward", _fake_backward)
        _vmap.register("bias_gelu", forward=(0,))
        kernels["cpu"] = Kernel(ops.bias_gelu_forward.default, ops.bias_gelu_backward.default)
    forward = _triton.define("bias_gelu", "forward", _fake_forward, 1)
    backward = _triton.define("bias_gelu", "backward", _fake_backward, 3)
    _vmap.register("bias_gelu", forward=(0,), suffix="_triton")
    kernels["triton"] = Kernel(forward.default, backward.default)
    register_block("bias_gelu", **kernels)


_register()
