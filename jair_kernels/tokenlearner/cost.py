"""Exact operation and byte counts of fused_tokenlearner (a multiply-accumulate counts as 2 FLOPs)."""

from __future__ import annotations

import torch


def forward_flops(b: int, n: int, d: int, h: int, k: int) -> int:
    """The two matrix products of the score MLP and the pooling product."""
    return 2 * b * n * (d * h + h * k + k * d)


def backward_flops(b: int, n: int, d: int, h: int, k: int) -> int:
    """What the gradients need: twice the forward. The recomputed forward products are not counted."""
    return 2 * forward_flops(b, n, d, h, k)


def forward_bytes(b: int, n: int, d: int, h: int, k: int, itemsize: int) -> int:
    """x and the weights read once, y written once."""
    return itemsize * (b * (n * d + k * d) + h * d + k * h)


def backward_bytes(b: int, n: int, d: int, h: int, k: int, itemsize: int) -> int:
    """x, y, dy and the weights read once, dx and the weight gradients written once."""
    return itemsize * (2 * b * (n * d + k * d) + 2 * (h * d + k * h))


def keeps_hidden(dtype: torch.dtype, d: int, h: int) -> bool:
    """Whether h = w1 LN(x) + b1 is kept for the backward, which else makes it again by a product of x: in 16
    bits, where it is at most a quarter as large as x.
    """
    return dtype.itemsize == 2 and 4 * h <= d


def saved_bytes(b: int, n: int, d: int, h: int, k: int, dtype: torch.dtype) -> int:
    """Kept for the backward beside x and the parameters: max and 1/sum of every softmax, mean and 1/std of
    every token, the hidden layer where `keeps_hidden`. A kernel in CUDA keeps y, but no hidden layer.
    """
    hidden = b * n * h if keeps_hidden(dtype, d, h) else 0
    return max(dtype.itemsize, 4) * 2 * b * (k + n) + dtype.itemsize * hidden
