"""Exact operation and byte counts of fused_tokenfuser (a multiply-accumulate counts as 2 FLOPs)."""

from __future__ import annotations


def forward_flops(b: int, n: int, d: int, h: int, k: int) -> int:
    """The two matrix products of the score MLP and the mixing product."""
    return 2 * b * n * (d * h + h * k + k * d)


def backward_flops(b: int, n: int, d: int, h: int, k: int) -> int:
    """What the gradients need: twice the forward. The recomputed forward products are not counted."""
    return 2 * forward_flops(b, n, d, h, k)


def forward_bytes(b: int, n: int, d: int, h: int, k: int, itemsize: int) -> int:
    """x, the tokens and the weights read once, y written once."""
    return itemsize * (b * (2 * n * d + k * d) + h * d + k * h)


def backward_bytes(b: int, n: int, d: int, h: int, k: int, itemsize: int) -> int:
    """x, dy, the tokens and the weights read once, dx, dtokens and the weight gradients written once."""
    return itemsize * (b * (3 * n * d + 2 * k * d) + 2 * (h * d + k * h))
