"""query_pool for the dispatcher: kernels, fake kernels, FLOP formulas. Autograd is left to composed ops."""

from __future__ import annotations

from typing import Any

import torch

from jair_kernels import _operators
from jair_kernels._autograd import accumulate_dtype
from jair_kernels._backends import register_block
from jair_kernels.query_pool import cost

Tensor = torch.Tensor


def _fake_forward(
    x: Tensor, queries: Tensor, mask: Tensor | None, norm: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    (b, n, d), k = x.shape, queries.shape[1]
    statistic = accumulate_dtype(x.dtype)
    stats = x.new_empty((b, n, 2) if norm else (0,), dtype=statistic)
    return x.new_empty((b, k, d)), x.new_empty((b, k, 2), dtype=statistic), stats


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    y: Tensor,
    softmax: Tensor,
    stats: Tensor,
    norm: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(queries.shape)


def _forward_flops(x: Any, queries: Any, *args: Any, **kwargs: Any) -> int:
    b, n, d = x
    return cost.forward_flops(b, n, d, queries[1])


def _backward_flops(dy: Any, x: Any, *args: Any, **kwargs: Any) -> int:
    b, n, d = x
    return cost.backward_flops(b, n, d, dy[1])


# Nothing is folded: queries that a batch shares stay shared within a sample only.
_KERNELS = _operators.define(
    "query_pool", _fake_forward, _fake_backward, (3, 2), flops=(_forward_flops, _backward_flops)
)
register_block("query_pool", **_KERNELS)
