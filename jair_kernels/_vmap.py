"""Batching rules, so that `torch.func.vmap` runs one kernel over all samples where the op allows it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]
Results = torch.Tensor | Tensors


def _fold(tensor: torch.Tensor | None, dim: int | None, samples: int) -> torch.Tensor | None:
    """[V,B,...] with V at `dim` (None: the same for every sample) to [V B,...]."""
    if tensor is None:
        return None
    moved = tensor.expand(samples, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.reshape(samples * moved.shape[1], *moved.shape[2:])


def _map(function: Callable[..., torch.Tensor], *results: Results) -> Results:
    """The function of each result of an op, or of its only one."""
    if isinstance(results[0], torch.Tensor):
        return function(*results)
    return tuple(map(function, *results))


def _rule(op: Callable[..., Results], folded: Collection[int]) -> Callable[..., tuple[Results, int]]:
    """One call with the samples folded into the images, if only arguments at the positions `folded` vary."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Results, int]:
        samples = info.batch_size
        pairs = list(zip(args, in_dims, strict=True))
        if not samples:  # one of zeros tells the shapes
            some = [a if d is None else a.new_zeros(a.shape[:d] + a.shape[d + 1 :]) for a, d in pairs]
            return _map(lambda out: out.new_empty((0, *out.shape)), op(*some)), 0
        if all(dim is None or i in folded for i, dim in enumerate(in_dims)):
            inputs = [_fold(a, dim, samples) if i in folded else a for i, (a, dim) in enumerate(pairs)]
            return _map(lambda out: out.unflatten(0, (samples, out.shape[0] // samples)), op(*inputs)), 0
        each = [
            op(*(a if dim is None else a.select(dim, sample) for a, dim in pairs))
            for sample in range(samples)
        ]
        return _map(lambda *outs: torch.stack(outs), *each), 0

    return rule


def register(op: str, *, forward: Collection[int], backward: Collection[int] = (), suffix: str = "") -> None:
    """Batching rules of op's two kernels: the positions of their arguments that have an image axis, where its
    results have one too. The backward of an op with parameters has none: it sums over images.
    """
    for direction, folded in (("forward", forward), ("backward", backward)):
        register_rule(f"{op}_{direction}{suffix}", folded)


def register_rule(name: str, folded: Collection[int] = ()) -> None:
    """The batching rule of one operator; without `folded` it runs sample by sample."""
    kernel = getattr(torch.ops.jair_kernels, name).default
    torch.library.register_vmap(f"jair_kernels::{name}", _rule(kernel, folded))
