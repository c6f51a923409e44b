"""Exact operation and byte counts of fused_token_pool (a multiply-accumulate counts as 2 FLOPs)."""

from __future__ import annotations


def forward_flops(b: int, n: int, d: int, k: int) -> int:
    """The pooling product."""
    return 2 * b * n * k * d


def backward_flops(b: int, n: int, d: int, k: int) -> int:
    """dP = x dY^T and dx = P dY."""
    return 2 * forward_flops(b, n, d, k)


def forward_bytes(b: int, n: int, d: int, k: int, itemsize: int) -> int:
    """x and the scores read once, y written once."""
    return itemsize * b * (n * d + n * k + k * d)


def backward_bytes(b: int, n: int, d: int, k: int, itemsize: int) -> int:
    """x, scores, y and dy read once, dx and dscores written once."""
    return itemsize * b * (2 * n * d + 2 * n * k + 2 * k * d)
