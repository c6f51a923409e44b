"""fused_tokenlearner in Triton: one program scores a segment of tokens and pools it while it is in L2."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import (
    Config,
    ceil_div,
    configured,
    launch,
    padded,
    precision,
    rows_contiguous,
    symbolic,
)
from jair_kernels._triton_grad import Parameters, Scratch, parameter_gradients
from jair_kernels._triton_loops import before_copies
from jair_kernels._triton_mlp import (
    contiguous,
    fold,
    fold_arguments,
    fold_row,
    hidden_blocks,
    input_gradient,
    row_moments,
    scores_of,
)
from jair_kernels._triton_pool import (
    DOTS,
    add_to_softmax,
    dot_rows,
    finish_softmax,
    load_softmax,
    mask_arguments,
    merge,
    parts_of,
    pool_chunk,
    score_gradient,
    softmax_weights,
    split_tokens,
    store_softmax,
    tokens_kept,
)

Tensor = torch.Tensor


@triton.jit
def forward_kernel(
    x, mask, wg, c, e, w2, b2, scores, y, softmax, stats, N, D, H, K, x_b, x_n, m_b, m_n, splits, segment,
    eps, TANH: tl.constexpr, HAS_B2: tl.constexpr, HAS_MASK: tl.constexpr, ONE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Scores of one segment into memory, their softmax, then the pooled columns, BLOCK_P at a time."""
    place = tl.program_id(0).to(tl.int64)
    b, begin = place // splits, (place % splits) * segment
    end = tl.minimum(begin + segment, N)
    k = tl.arange(0, BLOCK_K)
    x_image = x + b * x_b
    top, total = tl.full([BLOCK_K], float("-inf"), tl.float32), tl.full([BLOCK_K], 0.0, tl.float32)
    for n0 in range(begin, end, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
        keep = tokens_kept(mask, b, n, end, m_b, m_n, HAS_MASK)
        mean, rstd = row_moments(x_image + n * x_n, keep, D, eps, BLOCK_N, BLOCK_D)
        s, _, _ = scores_of(
            x_image + n * x_n, keep, mean, rstd, wg, c, e, w2, b2, x, D, H, K, False, TANH, HAS_B2, ONE,
            PRECISION, x.dtype.element_ty, BLOCK_N, BLOCK_D, BLOCK_H, BLOCK_K,
        )  # fmt: skip
        row = b * N + n
        tl.store(stats + 2 * row, mean, mask=n < end)
        tl.store(stats + 2 * row + 1, rstd, mask=n < end)
        tl.store(scores + row[:, None] * K + k[None, :], s, mask=(n < end)[:, None] & (k < K)[None, :])
        top, total = add_to_softmax(top, total, tl.where(keep[:, None], s, float("-inf")))
    top, inverse = finish_softmax(top, total)
    store_softmax(softmax + 2 * place * K, k, K, top, inverse)
    tl.debug_barrier()  # the scores just written are read below by other threads
    for d0 in range(0, D, BLOCK_P):
        d = d0 + tl.arange(0, BLOCK_P)
        acc = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
        before_copies()
        for n0 in range(begin, end, BLOCK_N):
            n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
            keep = tokens_kept(mask, b, n, end, m_b, m_n, HAS_MASK)
            inside = keep[:, None] & (k < K)[None, :]
            s = tl.load(scores + (b * N + n)[:, None] * K + k[None, :], mask=inside, other=float("-inf"))
            weights = softmax_weights(s, top, inverse, keep)
            acc = pool_chunk(acc, weights, x_image + n * x_n, keep, d, D, PRECISION)
        out = y + (place * K + k)[:, None] * D + d[None, :]
        tl.store(out, acc.to(y.dtype.element_ty), mask=(k < K)[:, None] & (d < D)[None, :])


@triton.jit
def backward_kernel(
    dy, x, mask, wg, c, e, w2, b2, softmax, stats, delta, dx, dh, g, ds, N, D, H, K, x_b, x_n, m_b, m_n,
    TANH: tl.constexpr, HAS_B2: tl.constexpr, HAS_MASK: tl.constexpr, ONE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of tokens: h and dP from one product, dS, then dx."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    x_rows, dy_image, row = x + b * x_b + n * x_n, dy + b * K * D, b * N + n
    mean, rstd = (
        tl.load(stats + 2 * row, mask=keep, other=0.0),
        tl.load(stats + 2 * row + 1, mask=keep, other=0.0),
    )
    s, normed, dweights = scores_of(
        x_rows, keep, mean, rstd, wg, c, e, w2, b2, dy_image, D, H, K, True, TANH, HAS_B2, ONE, PRECISION,
        x.dtype.element_ty, BLOCK_N, BLOCK_D, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    if N <= BLOCK_N:
        # The image's softmax anew: a single token then weighs exactly 1, whatever s was rounded to.
        top, total = tl.full([BLOCK_K], float("-inf"), tl.float32), tl.full([BLOCK_K], 0.0, tl.float32)
        top, total = add_to_softmax(top, total, tl.where(keep[:, None], s, float("-inf")))
        top, inverse = finish_softmax(top, total)
    else:
        top, inverse = load_softmax(softmax + 2 * b * K, k, K)
    weights = softmax_weights(s, top, inverse, keep)
    dscores = score_gradient(weights, dweights, delta, b, k, N, K, BLOCK_N)
    inside = (n < N)[:, None] & (k < K)[None, :]
    tl.store(ds + row[:, None] * K + k[None, :], dscores.to(ds.dtype.element_ty), mask=inside)
    input_gradient(
        x_rows, keep, mean, rstd, normed, weights, dscores, wg, c, e, w2, dy_image, dh, g, dx, row, n < N,
        D, H, K, True, TANH, ONE, PRECISION, x.dtype.element_ty, BLOCK_N, BLOCK_D, BLOCK_H, BLOCK_K,
    )  # fmt: skip


@triton.jit
def delta_kernel(
    dy, x, mask, wg, c, e, w2, b2, softmax, stats, sums, N, D, H, K, x_b, x_n, m_b, m_n,
    TANH: tl.constexpr, HAS_B2: tl.constexpr, HAS_MASK: tl.constexpr, ONE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """sum p dP and sum p over one block of tokens, [2,K], with the p and dP of `backward_kernel`."""
    blocks = tl.cdiv(N, BLOCK_N)
    place = tl.program_id(0).to(tl.int64)
    b = place // blocks
    n = (place % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    x_rows, dy_image, row = x + b * x_b + n * x_n, dy + b * K * D, b * N + n
    mean = tl.load(stats + 2 * row, mask=keep, other=0.0)
    rstd = tl.load(stats + 2 * row + 1, mask=keep, other=0.0)
    s, _, dweights = scores_of(
        x_rows, keep, mean, rstd, wg, c, e, w2, b2, dy_image, D, H, K, True, TANH, HAS_B2, ONE, PRECISION,
        x.dtype.element_ty, BLOCK_N, BLOCK_D, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    top, inverse = load_softmax(softmax + 2 * b * K, k, K)
    weights = softmax_weights(s, top, inverse, keep)
    to = sums + place * 2 * K + k
    tl.store(to, tl.sum(weights * dweights, 0), mask=k < K)
    tl.store(to + K, tl.sum(weights, 0), mask=k < K)


@triton.jit
def prepare_backward_kernel(
    w1, b1, norm_weight, norm_bias, wg, c, e, y, dy, delta, D, H, R, HAS_B1: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What `backward_kernel` reads: the first H programs fold a row of w1 each, the others make delta."""
    place = tl.program_id(0)
    if place < H:
        fold_row(place, w1, b1, norm_weight, norm_bias, wg, c, e, D, HAS_B1, HAS_WEIGHT, HAS_BIAS, BLOCK_D)
    else:
        dot_rows(place - H, y, dy, delta, R, D, BLOCK_R, BLOCK_C)


def forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, norm_weight: Tensor | None,
    norm_bias: Tensor | None, mask: Tensor | None, eps: float, tanh: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The op's forward: y [B,K,D] in x's dtype, max and 1/sum [B,K,2] and stats [B,N,2] in float32."""
    (b, n, d), (k, h) = x.shape, w2.shape
    y = x.new_empty((b, k, d))
    softmax, stats = (x.new_empty(shape, dtype=torch.float32) for shape in ((b, k, 2), (b, n, 2)))
    if not symbolic(b) and b == 0:
        return y, softmax, stats
    x = rows_contiguous(x)
    folded = fold(x, w1, b1, norm_weight, norm_bias)
    w2_read, b2_read = contiguous(w2, x), contiguous(b2, x)
    scores = x.new_empty((b, n, k), dtype=torch.float32)

    def run(config: Config) -> tuple[Tensor, Tensor, Tensor]:
        splits, segment = split_tokens(b, n, 1, config)
        parts, part_softmax, merged = parts_of(y, softmax, splits)
        blocks = {name: size for name, size in config.items() if name != "SEGMENT"}
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        launch(
            forward_kernel, (b * splits,), x, x, mask_or_x, *folded, w2_read, b2_read, scores, parts,
            part_softmax, stats, n, d, h, k, *x.stride()[:2], *mask_strides, splits, segment, eps, TANH=tanh,
            HAS_B2=b2 is not None, HAS_MASK=mask is not None, PRECISION=precision(x),
            BLOCK_K=padded(k), **hidden_blocks(h), **blocks,
        )  # fmt: skip
        if merged:
            merge(parts, part_softmax, mask, n, y, softmax, False)
        return y, softmax, stats

    result: tuple[Tensor, Tensor, Tensor] = configured("tokenlearner_forward", x, k, run)
    return result


def fold_and_dot(
    x: Tensor, y: Tensor, dy: Tensor, w1: Tensor, b1: Tensor | None, norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> tuple[tuple[Tensor, ...], Tensor]:  # fmt: skip
    """What `fold` and `row_dots` return, by one launch."""
    b, k, d = y.shape
    h, delta = w1.shape[0], x.new_empty((b, k), dtype=torch.float32)
    arguments, options = fold_arguments(x, w1, b1, norm_weight, norm_bias)
    launch(
        prepare_backward_kernel, (h + ceil_div(b * k, DOTS["BLOCK_R"]),), x, *arguments, y, dy, delta, d, h,
        b * k, **DOTS, **options,
    )  # fmt: skip
    return arguments[4:], delta


def backward(
    dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, mask: Tensor | None, y: Tensor, softmax: Tensor,
    stats: Tensor, tanh: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The op's backward: dx [B,N,D] in x's dtype, the parameters' gradients in theirs."""
    (b, n, d), (k, h) = x.shape, w2.shape
    dx, parameters = x.new_empty((b, n, d)), Parameters(w1, b1, w2, b2, norm_weight, norm_bias)
    if not symbolic(b) and b == 0:
        return dx, *parameters.zero_gradients(x)
    x, dy, softmax = rows_contiguous(x), dy.contiguous(), softmax.contiguous()
    w2_read, b2_read = contiguous(w2, x), contiguous(b2, x)
    saved, exact = Scratch.empty(x, h, k), x.dtype == torch.float32
    weights = (w1, b1, norm_weight, norm_bias)
    # y . dy is not the sum over the products' p and dP, by their rounding: in float32 that shows.
    folded, delta = (fold(x, *weights), softmax) if exact else fold_and_dot(x, y, dy, *weights)

    def run(config: Config) -> None:
        blocks = ceil_div(n, config["BLOCK_N"])
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        read = (dy, x, mask_or_x, *folded, w2_read, b2_read, softmax, stats)
        sizes = (n, d, h, k, *x.stride()[:2], *mask_strides)
        meta: dict[str, Any] = {
            "TANH": tanh, "HAS_B2": b2 is not None, "HAS_MASK": mask is not None, "PRECISION": precision(x),
            "BLOCK_K": padded(k), **hidden_blocks(h), **config,
        }  # fmt: skip
        inner = delta
        if exact and (symbolic(blocks) or blocks > 1):  # a block that is the whole image sums by itself
            sums = x.new_empty((b, blocks, 2, k))
            launch(delta_kernel, (b * blocks,), x, *read, sums, *sizes, **{**meta, "num_stages": 1})
            total = sums.sum(1)
            inner = total[:, 0] / total[:, 1].masked_fill(total[:, 1] == 0, 1)
        launch(backward_kernel, (b * blocks,), x, *read, inner, dx, *saved, *sizes, **meta)

    configured("tokenlearner_backward", x, k, run)
    return dx, *parameter_gradients(x, mask, stats, saved, parameters)
