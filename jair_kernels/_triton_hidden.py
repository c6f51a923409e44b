"""The first product of the score MLP on a GPU, h = w1 LN(x) + b1, with the LayerNorm folded into it.

The product is PyTorch's; a Triton kernel prepares what it takes. With Wg = w1 diag(norm_weight), c = Wg 1 and
e = w1 norm_bias + b1, and m and r the mean and 1/std of a row,

    h = r (x Wg^T - m c) + e

In bfloat16 and float16 x is multiplied as it is: the terms are exact in float32, and c is the sum of the
rounded Wg. In float32, where rows with |m| >> std would lose digits, xhat = r (x - m) is multiplied:
h = xhat Wg^T + e.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from jair_kernels._products import tokens_times
from jair_kernels._triton import ceil_div, contiguous, launch, rows_contiguous
from jair_kernels._triton_norm import normalise_rows, normalised
from jair_kernels._triton_pool import DOTS, dot_rows, mask_arguments
from jair_kernels._triton_rows import row_block

Tensor = torch.Tensor


@triton.jit
def fold_row(
    h, w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Row h of Wg with its sums c and e."""
    h = h.to(tl.int64)
    c_sum, e_sum = tl.full([BLOCK_F], 0.0, tl.float32), tl.full([BLOCK_F], 0.0, tl.float32)
    for d0 in range(0, D, BLOCK_F):
        d = d0 + tl.arange(0, BLOCK_F)
        w = tl.load(w1 + h * D + d, mask=d < D, other=0.0).to(tl.float32)
        if HAS_BIAS:
            e_sum += w * tl.load(norm_bias + d, mask=d < D, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            w *= tl.load(norm_weight + d, mask=d < D, other=0.0).to(tl.float32)
        w = w.to(wg.dtype.element_ty)
        tl.store(wg + h * D + d, w, mask=d < D)
        c_sum += w.to(tl.float32)
    bias = tl.sum(e_sum, 0)
    if HAS_B1:
        bias += tl.load(b1 + h).to(tl.float32)
    tl.store(c + h, tl.sum(c_sum, 0))
    tl.store(e + h, bias)


@triton.jit
def fold_kernel(
    w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Wg, c and e, a row a program."""
    h = tl.program_id(0)
    fold_row(h, w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1, HAS_WEIGHT, HAS_BIAS, BLOCK_F)


@triton.jit
def prepare_kernel(
    w1, b1, norm_weight, norm_bias, wg, c, e, D, x, mask, xhat, stats, H, R, N, x_b, x_n, m_b, m_n, eps,
    HAS_B1: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, WRITE: tl.constexpr,
    HAS_MASK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What the first product takes: H programs fold a row of w1 each, the others have rows of x."""
    place = tl.program_id(0)
    if place < H:
        fold_row(place, w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1, HAS_WEIGHT, HAS_BIAS, BLOCK_F)
    else:
        normalise_rows(
            place - H, x, mask, xhat, stats, R, N, D, x_b, x_n, m_b, m_n, eps, False, WRITE, HAS_MASK,
            BLOCK_R, BLOCK_D,
        )  # fmt: skip


@triton.jit
def fold_and_dot_kernel(
    w1, b1, norm_weight, norm_bias, wg, c, e, y, dy, delta, D, H, R, HAS_B1: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The first H programs fold a row of w1 each, the others make delta."""
    place = tl.program_id(0)
    if place < H:
        fold_row(place, w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1, HAS_WEIGHT, HAS_BIAS, BLOCK_F)
    else:
        dot_rows(place - H, y, dy, delta, R, D, BLOCK_R, BLOCK_C)


class Hidden(NamedTuple):
    """The hidden layer before its bias and GELU, as the kernels read it."""

    wg: Tensor  # [H,D] in x's dtype
    c: Tensor  # [H], float32
    e: Tensor  # [H], float32
    # [B,N,H]: x Wg^T in float32, or xhat Wg^T where that is x's dtype; if `kept`, h in x's dtype
    products: Tensor
    kept: bool = False


def hidden(
    x: Tensor, mask: Tensor | None, w1: Tensor, b1: Tensor | None, norm_weight: Tensor | None,
    norm_bias: Tensor | None, eps: float,
) -> tuple[Hidden, Tensor]:  # fmt: skip
    """The hidden layer, and mean and 1/std [B,N,2] of the rows of x."""
    (b, n, d), x = x.shape, rows_contiguous(x)
    arguments, options = fold_arguments(x, w1, b1, norm_weight, norm_bias)
    exact, (h, _d) = x.dtype == torch.float32, w1.shape
    xhat, stats = x.new_empty((b, n, d)) if exact else x, x.new_empty((b, n, 2), dtype=torch.float32)
    mask_or_x, *mask_strides = mask_arguments(mask, x)
    block = row_block(d)
    launch(
        prepare_kernel, (h + ceil_div(b * n, block["BLOCK_R"]),), x, *arguments, d, x, mask_or_x, xhat,
        stats, h, b * n, n, *x.stride()[:2], *mask_strides, eps, WRITE=exact, HAS_MASK=mask is not None,
        **options, **block,
    )  # fmt: skip
    wg, c, e = arguments[4:]
    return Hidden(wg, c, e, tokens_times(xhat, wg)), stats


def hidden_again(
    x: Tensor, mask: Tensor | None, stats: Tensor, kept: Tensor, folded: tuple[Tensor, ...]
) -> Hidden:
    """The same from what was kept, h [B,N,H] or the statistics and [B,N,0], and from what `fold` returns."""
    wg, c, e = folded
    if kept.shape[2] > 0:
        return Hidden(wg, c, e, kept.contiguous(), kept=True)
    rows = normalised(x, mask, 0.0, stats)[0] if x.dtype == torch.float32 else rows_contiguous(x)
    return Hidden(wg, c, e, tokens_times(rows, wg))


def fold(
    x: Tensor, w1: Tensor, b1: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Wg [H,D] in x's dtype, c and e [H] in float32."""
    arguments, options = fold_arguments(x, w1, b1, norm_weight, norm_bias)
    launch(fold_kernel, (w1.shape[0],), x, *arguments, w1.shape[1], **options, num_warps=4)
    return arguments[4:]


def fold_and_dot(
    x: Tensor, y: Tensor, dy: Tensor, w1: Tensor, b1: Tensor | None, norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> tuple[tuple[Tensor, ...], Tensor]:  # fmt: skip
    """What `fold` and `row_dots` of y and dy return, by one launch."""
    b, k, d = y.shape
    h, delta = w1.shape[0], x.new_empty((b, k), dtype=torch.float32)
    arguments, options = fold_arguments(x, w1, b1, norm_weight, norm_bias)
    launch(
        fold_and_dot_kernel, (h + ceil_div(b * k, DOTS["BLOCK_R"]),), x, *arguments, y, dy, delta, d, h,
        b * k, **DOTS, **options, num_warps=4,
    )  # fmt: skip
    return arguments[4:], delta


def fold_arguments(
    x: Tensor, w1: Tensor, b1: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `fold_row` takes, Wg, c and e last, and its compile-time arguments."""
    h, d = w1.shape
    wg, c, e = (
        x.new_empty((h, d)),
        x.new_empty((h,), dtype=torch.float32),
        x.new_empty((h,), dtype=torch.float32),
    )
    read = w1.contiguous(), contiguous(b1, x), contiguous(norm_weight, x), contiguous(norm_bias, x)
    has = {
        "HAS_B1": b1 is not None,
        "HAS_WEIGHT": norm_weight is not None,
        "HAS_BIAS": norm_bias is not None,
    }
    return (*read, wg, c, e), {**has, "BLOCK_F": 1024}
