"""fused_token_pool in Triton: one program pools one segment of tokens, for one chunk of the columns."""

from __future__ import annotations

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
from jair_kernels._triton_loops import before_copies
from jair_kernels._triton_pool import (
    add_to_softmax,
    finish_softmax,
    kept_count,
    load_softmax,
    mask_arguments,
    merge,
    parts_of,
    pool_chunk,
    row_dots,
    score_gradient,
    softmax_weights,
    split_tokens,
    store_softmax,
    tokens_kept,
)

Tensor = torch.Tensor


@triton.jit
def forward_kernel(
    x, scores, mask, y, softmax, N, D, K, x_b, x_n, s_b, s_n, s_k, m_b, m_n, splits, segment,
    SIGMOID: tl.constexpr, MEAN: tl.constexpr, HAS_MASK: tl.constexpr, MERGED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One segment of tokens, one chunk of columns. MERGED: y and softmax are those of the segment alone."""
    chunks = tl.cdiv(D, BLOCK_D)
    place = (tl.program_id(0) // chunks).to(tl.int64)
    b, begin = place // splits, (place % splits) * segment
    d0 = (tl.program_id(0) % chunks) * BLOCK_D
    d, k = d0 + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    end = tl.minimum(begin + segment, N)
    s_cols = scores + b * s_b + k[None, :] * s_k
    top, inverse = tl.full([BLOCK_K], float("-inf"), tl.float32), tl.full([BLOCK_K], 0.0, tl.float32)
    if not SIGMOID:
        total = tl.full([BLOCK_K], 0.0, tl.float32)
        for n0 in range(begin, end, BLOCK_N):
            n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
            keep = tokens_kept(mask, b, n, end, m_b, m_n, HAS_MASK)
            inside = keep[:, None] & (k < K)[None, :]
            s = tl.load(s_cols + n[:, None] * s_n, mask=inside, other=float("-inf")).to(tl.float32)
            top, total = add_to_softmax(top, total, s)
        top, inverse = finish_softmax(top, total)
        if d0 == 0:
            store_softmax(softmax + 2 * place * K, k, K, top, inverse)
    acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    before_copies()
    for n0 in range(begin, end, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
        keep = tokens_kept(mask, b, n, end, m_b, m_n, HAS_MASK)
        s = tl.load(s_cols + n[:, None] * s_n, mask=keep[:, None] & (k < K)[None, :], other=0.0).to(
            tl.float32
        )
        if SIGMOID:
            weights = tl.where(keep[:, None], 1 / (1 + tl.exp(-s)), 0.0)
        else:
            weights = softmax_weights(s, top, inverse, keep)
        acc = pool_chunk(acc, weights, x + b * x_b + n * x_n, keep, d, D, PRECISION)
    if MEAN and not MERGED:
        acc = acc / kept_count(mask, b, N, m_b, m_n, HAS_MASK, BLOCK_N)
    out = y + (place * K + k)[:, None] * D + d[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=(k < K)[:, None] & (d < D)[None, :])


@triton.jit
def backward_kernel(
    dy, x, scores, mask, softmax, delta, dx, dscores, N, D, K, x_b, x_n, s_b, s_n, s_k, m_b, m_n,
    SIGMOID: tl.constexpr, MEAN: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of tokens: dP = x dY^T, then dS and dx = P dY."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    d, k = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    x_rows, dy_image = x + b * x_b + n * x_n, dy + b * K * D
    dweights = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    before_copies()
    for d0 in range(0, D, BLOCK_D):
        xt = tl.load(
            x_rows[:, None] + (d0 + d)[None, :], mask=keep[:, None] & (d0 + d < D)[None, :], other=0.0
        )
        wide = (k < K)[None, :] & (d0 + d < D)[:, None]
        dyt = tl.load(dy_image + k[None, :] * D + (d0 + d)[:, None], mask=wide, other=0.0)
        dweights = tl.dot(xt, dyt, dweights, input_precision=PRECISION)
    factor = 1.0
    if MEAN:
        factor = 1 / kept_count(mask, b, N, m_b, m_n, HAS_MASK, BLOCK_N)
    dweights *= factor
    s_at = scores + b * s_b + n[:, None] * s_n + k[None, :] * s_k
    s = tl.load(s_at, mask=keep[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)
    if SIGMOID:
        weights = tl.where(keep[:, None], 1 / (1 + tl.exp(-s)), 0.0)
        ds = dweights * weights * (1 - weights)
    else:
        top, inverse = load_softmax(softmax + 2 * b * K, k, K)
        weights = softmax_weights(s, top, inverse, keep)
        ds = score_gradient(weights, dweights, delta, b, k, N, K, BLOCK_N)
    row = b * N + n
    inside = (n < N)[:, None] & (k < K)[None, :]
    tl.store(dscores + row[:, None] * K + k[None, :], ds.to(dscores.dtype.element_ty), mask=inside)
    weights = weights.to(dx.dtype.element_ty)
    before_copies()
    for d0 in range(0, D, BLOCK_D):
        wide = (k < K)[:, None] & (d0 + d < D)[None, :]
        dyt = tl.load(dy_image + k[:, None] * D + (d0 + d)[None, :], mask=wide, other=0.0)
        out = tl.dot(weights, dyt, input_precision=PRECISION) * factor
        to = dx + row[:, None] * D + (d0 + d)[None, :]
        tl.store(to, out.to(dx.dtype.element_ty), mask=(n < N)[:, None] & (d0 + d < D)[None, :])


def forward(
    x: Tensor, scores: Tensor, mask: Tensor | None, sigmoid: bool, mean: bool
) -> tuple[Tensor, Tensor]:
    """The op's forward: y [B,K,D] in x's dtype and max and 1/sum [B,K,2] in float32, empty for sigmoid."""
    (b, n, d), k = x.shape, scores.shape[2]
    y = x.new_empty((b, k, d))
    softmax = x.new_empty((0,) if sigmoid else (b, k, 2), dtype=torch.float32)
    if not symbolic(b, n) and b * n == 0:
        return y.zero_(), softmax
    x = rows_contiguous(x)

    def run(config: Config) -> tuple[Tensor, Tensor]:
        chunks = ceil_div(d, config["BLOCK_D"])
        splits, segment = split_tokens(b, n, chunks, config)
        parts, part_softmax, merged = parts_of(y, softmax, splits)
        blocks = {name: config[name] for name in ("BLOCK_N", "BLOCK_D", "num_warps", "num_stages")}
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        launch(
            forward_kernel, (b * splits * chunks,), x, x, scores, mask_or_x, parts, part_softmax, n, d,
            k, *x.stride()[:2], *scores.stride(), *mask_strides, splits, segment, SIGMOID=sigmoid, MEAN=mean,
            HAS_MASK=mask is not None, MERGED=merged, PRECISION=precision(x), BLOCK_K=padded(k), **blocks,
        )  # fmt: skip
        if merged:
            merge(parts, part_softmax, mask, n, y, softmax, mean)
        return y, softmax

    wide = scores.element_size() > x.element_size()  # float32 beside 16 bits takes more registers
    kernel = "token_pool_wide_forward" if wide else "token_pool_forward"
    result: tuple[Tensor, Tensor] = configured(kernel, x, k, run)
    return result


def backward(
    dy: Tensor,
    x: Tensor,
    scores: Tensor,
    mask: Tensor | None,
    y: Tensor,
    softmax: Tensor,
    sigmoid: bool,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """The op's backward: dx [B,N,D] and dscores [B,N,K] in x's dtype."""
    (b, n, d), k = x.shape, scores.shape[2]
    dx, dscores = x.new_empty((b, n, d)), x.new_empty((b, n, k))
    if not symbolic(b, n) and b * n == 0:
        return dx, dscores
    x, dy = rows_contiguous(x), dy.contiguous()
    softmax = softmax.contiguous()
    delta = softmax if sigmoid else row_dots(y, dy)

    def run(config: Config) -> tuple[Tensor, Tensor]:
        blocks = ceil_div(n, config["BLOCK_N"])
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        launch(
            backward_kernel, (b * blocks,), x, dy, x, scores, mask_or_x, softmax, delta, dx, dscores, n,
            d, k, *x.stride()[:2], *scores.stride(), *mask_strides, SIGMOID=sigmoid, MEAN=mean,
            HAS_MASK=mask is not None, PRECISION=precision(x), BLOCK_K=padded(k), **config,
        )  # fmt: skip
        return dx, dscores

    result: tuple[Tensor, Tensor] = configured("token_pool_backward", x, k, run)
    return result
