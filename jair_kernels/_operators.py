"""The operators of an op on its compiled and its Triton backend: what torch has to know of each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from jair_kernels import _library, _triton, _vmap
from jair_kernels._backends import Kernel, always

Flops = Callable[..., int]


def define(
    op: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    outputs: tuple[int, int],
    *,
    folded: tuple[Collection[int], Collection[int]] = ((), ()),
    flops: tuple[Flops, Flops] | None = None,
    unfit: Callable[..., str | None] = always,
    unfit_cuda: Callable[..., str | None] | None = None,
    reads_result: Collection[str] = (),
) -> dict[str, Kernel]:
    """Register jair_kernels::<op>_forward and _backward, compiled and in Triton, as one is like the other.

    Args:
        forward, backward: fake kernels, which also give the Triton operators their schemas.
        outputs: how many tensors each returns.
        folded: positions of arguments with an image axis, as in `_vmap.register`.
        flops: formulas over the shapes of the arguments; None = none.
        unfit: of the Triton `Kernel`.
        reads_result: the backends whose backward takes the forward's first result.
        unfit_cuda: given where jair_kernels.<op>.cuda surrounds kernels of the compiled library with some in
            Triton; its limit then.

    Returns:
        the backends, as `_backends.register` and `register_block` take them.
    """
    directions, kernels, ops = ("forward", "backward"), {}, torch.ops.jair_kernels
    if _library.has_kernel(op, "CPU"):
        for direction, fake in zip(directions, (forward, backward), strict=True):
            torch.library.register_fake(f"jair_kernels::{op}_{direction}", fake)
        pair = [getattr(ops, f"{op}_{direction}") for direction in directions]
        _describe(op, "", pair, folded, flops)
        kernels["cpu"] = Kernel(pair[0].default, pair[1].default)
        if _library.has_kernel(op, "CUDA"):
            kernels["cuda"] = kernels["cpu"]
    limits = {"triton": unfit} | ({} if unfit_cuda is None else {"cuda": unfit_cuda})
    for backend, limit in limits.items():
        made = zip(directions, (forward, backward), outputs, strict=True)
        pairs = [_triton.define(op, direction, fake, count, backend) for direction, fake, count in made]
        _describe(op, f"_{backend}", [operator for operator, _ in pairs], folded, flops)
        kernels[backend] = Kernel(pairs[0][1], pairs[1][1], limit, backend in reads_result)
    return kernels


def _describe(
    op: str,
    suffix: str,
    pair: list[Any],
    folded: tuple[Collection[int], Collection[int]],
    flops: tuple[Flops, Flops] | None,
) -> None:
    _vmap.register(op, forward=folded[0], backward=folded[1], suffix=suffix)
    if flops is not None:
        for operator, formula in zip(pair, flops, strict=True):
            register_flop_formula(operator)(formula)
