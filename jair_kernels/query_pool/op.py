"""query_pool for the dispatcher: kernels, fake kernels, FLOP formulas. Autograd is left to composed ops."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from jair_kernels import _library, _triton, _vmap
from jair_kernels._autograd import accumulate_dtype
from jair_kernels._backends import Kernel, register_block
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


def _count(forward: Any, backward: Any) -> None:
    @register_flop_formula(forward)
    def _(x: Any, queries: Any, *args: Any, **kwargs: Any) -> int:
        b, n, d = x
        return cost.forward_flops(b, n, d, queries[1])

    @register_flop_formula(backward)
    def _(dy: Any, x: Any, *args: Any, **kwargs: Any) -> int:
        b, n, d = x
        return cost.backward_flops(b, n, d, dy[1])


def _register() -> None:
    kernels = {}
    if _library.has_kernel("query_pool", "CPU"):
        ops = torch.ops.jair_kernels
        torch.library.register_fake("jair_kernels::query_pool_forward", _fake_forward)
        torch.library.register_fake("jair_kernels::query_pool_backward", _fake_backward)
        # Sample by sample: queries that a batch shares stay shared within a sample only.
        _vmap.register("query_pool", forward=(), backward=())
        kernels["cpu"] = Kernel(ops.query_pool_forward.default, ops.query_pool_backward.default)
        _count(ops.query_pool_forward, ops.query_pool_backward)
    forward = _triton.define("query_pool", "forward", _fake_forward, 3)
    backward = _triton.define("query_pool", "backward", _fake_backward, 2)
    _vmap.register("query_pool", forward=(), backward=(), suffix="_triton")
    kernels["triton"] = Kernel(forward.default, backward.default)
    _count(forward, backward)

    register_block("query_pool", **kernels)


_register()
