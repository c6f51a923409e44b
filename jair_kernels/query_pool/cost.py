"""Exact operation and byte counts of query_pool (a multiply-accumulate counts as 2 FLOPs).

`sets` is the number of query sets: 1 where the batch shares its queries, else b.
"""

from __future__ import annotations


def forward_flops(b: int, n: int, d: int, k: int) -> int:
    """The scores and the pooling product."""
    return 4 * b * n * k * d


def backward_flops(b: int, n: int, d: int, k: int) -> int:
    """What the gradients need: twice the forward. The recomputed scores are not counted."""
    return 2 * forward_flops(b, n, d, k)


def forward_bytes(b: int, n: int, d: int, k: int, sets: int, itemsize: int) -> int:
    """x and the queries read once, y written once."""
    return itemsize * d * (b * (n + k) + sets * k)


def backward_bytes(b: int, n: int, d: int, k: int, sets: int, itemsize: int) -> int:
    """x, dy and the queries read once, dx and dqueries written once."""
    return itemsize * d * (b * (2 * n + k) + 2 * sets * k)


def saved_bytes(b: int, n: int, d: int, k: int, norm: bool, itemsize: int) -> int:
    """Kept for the backward beside x and the queries: y, softmaxes, means and 1/std of the tokens."""
    statistic = max(itemsize, 4)
    return itemsize * b * k * d + 2 * statistic * b * (k + (n if norm else 0))
