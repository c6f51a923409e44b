"""The passes over x of fused_tokenlearner in CUDA C++: their fake kernels, and what they take."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from jair_kernels import _library

Tensor = torch.Tensor

HIDDEN = 64  # hidden units that a block keeps the folded weights of
# Output tokens, by the width of x, whose gradients fit beside them: csrc/cuda/tokenlearner_backward.cuh
OUTPUTS = {384: 32, 512: 32, 768: 32, 1024: 16}
_ARCHITECTURES = (9, 10)  # major compute capabilities
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def unfit(x: Tensor, w1: Tensor | None = None, w2: Tensor | None = None) -> str | None:
    """Why a call does not fit, or None."""
    if not _HAS_TRITON:
        return "triton is not installed, in which the weights are folded"
    if x.dtype == torch.float32:
        return "it takes bfloat16, float16, got float32"
    if x.is_cuda and torch.cuda.get_device_capability(x.device)[0] not in _ARCHITECTURES:
        return "it needs 227 KB of shared memory in a block: Hopper, or Blackwell of a data centre"
    width = x.shape[2]
    if width not in OUTPUTS:
        return f"it takes tokens of width {', '.join(map(str, OUTPUTS))}, got {int(width)}"
    if w2 is None:
        return None
    outputs, hidden = w2.shape
    if outputs > OUTPUTS[int(width)]:
        return f"at this width it takes up to {OUTPUTS[int(width)]} output tokens, got {int(outputs)}"
    return None if hidden <= HIDDEN else f"it takes up to {HIDDEN} hidden units, got {int(hidden)}"


def _fake_pool(
    x: Tensor, wg: Tensor, c: Tensor, e: Tensor, w2: Tensor, b2: Tensor | None, mask: Tensor | None,
    eps: float, tanh: bool, shares: int, share_tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (b, n, d), k = x.shape, w2.shape[0]
    y = x.new_empty((b, k, d)) if shares == 1 else x.new_empty((b, shares, k, d), dtype=torch.float32)
    softmax = x.new_empty((b, shares, k, 2), dtype=torch.float32)
    return y, softmax, x.new_empty((b, n, 2), dtype=torch.float32)


def _fake_inputs(
    dy: Tensor, x: Tensor, wg: Tensor, c: Tensor, e: Tensor, w2: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, n, d = x.shape
    padded = 16 if w2.shape[0] <= 16 else 32
    dx, dh, g, ds = (x.new_empty((b, n, size)) for size in (d, HIDDEN, HIDDEN, padded))
    return dx, dh, g, ds


def _fake_sums(
    x: Tensor, mask: Tensor | None, stats: Tensor, dh: Tensor, g: Tensor, ds: Tensor, hidden: int,
    outputs: int, share_tokens: int,
) -> Tensor:  # fmt: skip
    b, n, d = x.shape
    shares = (b * n + share_tokens - 1) // share_tokens
    return x.new_empty((shares, hidden * d + outputs * hidden + hidden + outputs), dtype=torch.float32)


if _library.load_error is None:
    for _name, _fake in (("pool", _fake_pool), ("inputs", _fake_inputs), ("sums", _fake_sums)):
        if hasattr(torch.ops.jair_kernels, f"tokenlearner_{_name}"):
            torch.library.register_fake(f"jair_kernels::tokenlearner_{_name}", _fake)
