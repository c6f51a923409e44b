"""gate for the dispatcher: what Gated in `_blocks` makes of a weight's gradient, in Triton alone.

PyTorch would launch some fifteen kernels for it, of a few microseconds each.
"""

from __future__ import annotations

import torch

from jair_kernels import _triton, _vmap
from jair_kernels._autograd import like_parameter

Tensor = torch.Tensor


def _fake_backward(
    product: Tensor, weight: Tensor, total: Tensor | None, bias: Tensor | None, centre: Tensor | None,
    gate: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows = product.new_empty((product.shape[0],), dtype=torch.float32)
    return product.new_empty(product.shape), like_parameter(bias, product), rows


_operator, backward = _triton.define("gate", "backward", _fake_backward, 3)
_vmap.register_rule("gate_backward_triton")
