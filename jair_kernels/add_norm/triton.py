"""add_norm in Triton: one program keeps a block of whole rows in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._triton import ceil_div, contiguous, launch, rows_contiguous, symbolic
from jair_kernels._triton_rows import (
    add_ranges,
    load_parameter,
    load_rows,
    new_gradient,
    row_block,
    split_rows,
    store_rows,
)

Tensor = torch.Tensor


@triton.jit
def gate_factor(gate):
    """tanh, which keeps the digits of small gates, where training begins."""
    square = gate * gate
    p = square * -5.70498873e-3 + 2.06390888e-2
    p = p * square - 5.37397155e-2
    p = p * square + 1.33314422e-1
    p = p * square - 3.33332819e-1
    size = tl.abs(gate)
    far = 1 - 2 / (tl.exp(2 * size) + 1)
    return tl.where(size < 0.625, gate + gate * square * p, tl.where(gate < 0, -far, far))


@triton.jit
def forward_kernel(
    x, x_stats, x_weight, x_bias, update, gate, weight, bias, z, y, stats, R, D, x_r, update_r,
    eps, BASE_NORMED: tl.constexpr, HAS_X_WEIGHT: tl.constexpr, HAS_X_BIAS: tl.constexpr,
    UPDATED: tl.constexpr, GATES: tl.constexpr, NORM: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """GATES: 0 none, 1 one for all columns, 2 one for each."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    v = load_rows(x, row, x_r, R, d, D)
    if BASE_NORMED:
        x_mean = tl.load(x_stats + 2 * row, mask=row < R, other=0.0)
        x_rstd = tl.load(x_stats + 2 * row + 1, mask=row < R, other=0.0)
        v = (v - x_mean[:, None]) * x_rstd[:, None]
        v = v * load_parameter(x_weight, d, D, 1.0, HAS_X_WEIGHT)[None, :]
        v += load_parameter(x_bias, d, D, 0.0, HAS_X_BIAS)[None, :]
    if UPDATED:
        added = load_rows(update, row, update_r, R, d, D)
        if GATES == 1:
            added *= gate_factor(tl.load(gate).to(tl.float32))
        if GATES == 2:
            added *= gate_factor(load_parameter(gate, d, D, 0.0, True))[None, :]
        v += added
    if BASE_NORMED or UPDATED:
        store_rows(z, v, row, R, d, D)
        v = v.to(z.dtype.element_ty).to(tl.float32)  # the backward sees z as it is in memory
    if NORM:
        # The mean by way of the first element: a plain sum would leave constant rows with a spread.
        # What it still lacks, where that element lies far from it, shows in what is left.
        first = tl.sum(tl.where((d == 0)[None, :], v, 0.0), 1)
        v = tl.where((d < D)[None, :], v - first[:, None], 0.0)
        offset = tl.sum(v, 1) / D
        v = tl.where((d < D)[None, :], v - offset[:, None], 0.0)
        rstd = (1 / tl.sqrt(tl.sum(v * v, 1) / D + eps)).to(tl.float32)  # eps is wider in compiled code
        tl.store(stats + 2 * row, first + offset + tl.sum(v, 1) / D, mask=row < R)
        tl.store(stats + 2 * row + 1, rstd, mask=row < R)
        v = v * rstd[:, None] * load_parameter(weight, d, D, 1.0, HAS_WEIGHT)[None, :]
        v += load_parameter(bias, d, D, 0.0, HAS_BIAS)[None, :]
        store_rows(y, v, row, R, d, D)


@triton.jit
def backward_kernel(
    dy, dz, z, stats, weight, dx, parts, R, D, dy_r, dz_r, z_r, blocks, HAS_DZ: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx of a range of rows; its sums of dy zhat and of dy become two rows of parts."""
    d = tl.arange(0, BLOCK_D)
    begin = tl.program_id(0).to(tl.int64) * blocks * BLOCK_R
    scale = load_parameter(weight, d, D, 1.0, HAS_WEIGHT)
    dweight = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for i in range(blocks):
        row = begin + i * BLOCK_R + tl.arange(0, BLOCK_R)
        g = load_rows(dy, row, dy_r, R, d, D)
        mean = tl.load(stats + 2 * row, mask=row < R, other=0.0)
        rstd = tl.load(stats + 2 * row + 1, mask=row < R, other=0.0)
        normal = (load_rows(z, row, z_r, R, d, D) - mean[:, None]) * rstd[:, None]
        dweight += g * normal
        dbias += g
        g *= scale[None, :]
        constant, linear = tl.sum(g, 1) / D, tl.sum(g * normal, 1) / D
        g = (g - constant[:, None] - normal * linear[:, None]) * rstd[:, None]
        if HAS_DZ:
            g += load_rows(dz, row, dz_r, R, d, D)
        store_rows(dx, g, row, R, d, D)
    to = parts + tl.program_id(0).to(tl.int64) * 2 * D + d
    tl.store(to, tl.sum(dweight, 0), mask=d < D)
    tl.store(to + D, tl.sum(dbias, 0), mask=d < D)


def forward(
    x: Tensor, x_stats: Tensor | None, x_weight: Tensor | None, x_bias: Tensor | None, update: Tensor | None,
    gate: Tensor | None, norm: bool, weight: Tensor | None, bias: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The op's forward: z, y and stats, each empty where the reference says so."""
    r, d = x.shape
    combined = x_stats is not None or update is not None
    z, y = x.new_empty((r, d) if combined else (0,)), x.new_empty((r, d) if norm else (0,))
    stats = x.new_empty((r, 2) if norm else (0,), dtype=torch.float32)
    if (not symbolic(r) and r == 0) or not (combined or norm):
        return z, y, stats
    x = rows_contiguous(x)
    update_rows = x if update is None else rows_contiguous(update)
    block = row_block(d)
    launch(
        forward_kernel, (ceil_div(r, block["BLOCK_R"]),), x, x,
        *(contiguous(p, x) for p in (x_stats, x_weight, x_bias)), update_rows,
        *(contiguous(p, x) for p in (gate, weight, bias)), z if combined else x, y, stats, r, d, x.stride(0),
        update_rows.stride(0), eps, BASE_NORMED=x_stats is not None, HAS_X_WEIGHT=x_weight is not None,
        HAS_X_BIAS=x_bias is not None, UPDATED=update is not None,
        GATES=0 if gate is None else 1 if gate.numel() == 1 else 2, NORM=norm, HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None, **block,
    )  # fmt: skip
    return z, y, stats


def backward(
    dy: Tensor, dz: Tensor | None, z: Tensor, stats: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The op's backward: dx, and the parameters' gradients in their dtypes."""
    r, d = z.shape
    dx, dweight, dbias = z.new_empty((r, d)), new_gradient(weight, z), new_gradient(bias, z)
    if not symbolic(r) and r == 0:
        return dx, dweight.zero_(), dbias.zero_()
    dy, z = rows_contiguous(dy), rows_contiguous(z)
    dz_rows = dy if dz is None else rows_contiguous(dz)
    block = row_block(d)
    splits, blocks = split_rows(r, block["BLOCK_R"])
    parts = z.new_empty((splits, 2, d), dtype=torch.float32)
    launch(
        backward_kernel, (splits,), z, dy, dz_rows, z, stats.contiguous(), contiguous(weight, z), dx, parts,
        r, d, dy.stride(0), dz_rows.stride(0), z.stride(0), blocks, HAS_DZ=dz is not None,
        HAS_WEIGHT=weight is not None, **block,
    )  # fmt: skip
    if weight is not None or bias is not None:
        add_ranges(parts, None if weight is None else dweight, None if bias is None else dbias)
    return dx, dweight, dbias
