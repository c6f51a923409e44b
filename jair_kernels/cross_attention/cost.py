"""Exact operation and byte counts of fused_cross_attention (a multiply-accumulate counts as 2 FLOPs)."""

from __future__ import annotations


def forward_flops(b: int, h: int, l: int, n: int, d: int) -> int:
    """The products with k and with v; masks and ranges are not counted off."""
    return 4 * b * h * l * n * d


def backward_flops(b: int, h: int, l: int, n: int, d: int) -> int:
    """Twice the forward: dP, dV, dQ and dK. The scores, computed again, are not counted."""
    return 2 * forward_flops(b, h, l, n, d)


def forward_bytes(b: int, h: int, h_kv: int, l: int, n: int, d: int, itemsize: int) -> int:
    """q, k and v read once, y written once."""
    return itemsize * b * d * (2 * h * l + 2 * h_kv * n)


def backward_bytes(b: int, h: int, h_kv: int, l: int, n: int, d: int, itemsize: int) -> int:
    """q, k, v, y and dy read once, dq, dk and dv written once."""
    return itemsize * b * d * (4 * h * l + 4 * h_kv * n)
