"""fused_tokenfuser in Triton: one program weighs a block of tokens and writes its mixture of the K tokens."""

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
from jair_kernels._triton_grad import Parameters, Scratch, parameter_gradients
from jair_kernels._triton_loops import before_copies
from jair_kernels._triton_mlp import contiguous, fold, hidden_blocks, input_gradient, row_moments, scores_of
from jair_kernels.token_pool.triton import forward as pool

Tensor = torch.Tensor


@triton.jit
def forward_kernel(
    x, tokens, wg, c, e, w2, b2, y, stats, N, D, H, K, x_b, x_n, eps, TANH: tl.constexpr,
    HAS_B2: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of tokens: scores, sigmoid, mixture."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    k, keep, row = tl.arange(0, BLOCK_K), n < N, b * N + n
    x_rows = x + b * x_b + n * x_n
    mean, rstd = row_moments(x_rows, keep, D, eps, BLOCK_N, BLOCK_D)
    s, _, _ = scores_of(
        x_rows, keep, mean, rstd, wg, c, e, w2, b2, x, D, H, K, False, TANH, HAS_B2, ONE, PRECISION,
        x.dtype.element_ty, BLOCK_N, BLOCK_D, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    tl.store(stats + 2 * row, mean, mask=keep)
    tl.store(stats + 2 * row + 1, rstd, mask=keep)
    weights = (1 / (1 + tl.exp(-s))).to(x.dtype.element_ty)
    before_copies()
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        at = tokens + (b * K + k)[:, None] * D + d[None, :]
        t = tl.load(at, mask=(k < K)[:, None] & (d < D)[None, :], other=0.0)
        out = tl.dot(weights, t, input_precision=PRECISION)
        tl.store(
            y + row[:, None] * D + d[None, :],
            out.to(y.dtype.element_ty),
            mask=keep[:, None] & (d < D)[None, :],
        )


@triton.jit
def backward_kernel(
    dy, x, tokens, wg, c, e, w2, b2, stats, scores, dx, dh, g, ds, N, D, H, K, x_b, x_n, dy_b, dy_n,
    TANH: tl.constexpr, HAS_B2: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of tokens: the scores again, dS = (dY tokens^T) m (1 - m), then dx."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    d, k, keep, row = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K), n < N, b * N + n
    x_rows, dy_rows, image = x + b * x_b + n * x_n, dy + b * dy_b + n * dy_n, tokens + b * K * D
    mean, rstd = (
        tl.load(stats + 2 * row, mask=keep, other=0.0),
        tl.load(stats + 2 * row + 1, mask=keep, other=0.0),
    )
    s, normed, _ = scores_of(
        x_rows, keep, mean, rstd, wg, c, e, w2, b2, image, D, H, K, False, TANH, HAS_B2, ONE, PRECISION,
        x.dtype.element_ty, BLOCK_N, BLOCK_D, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    dweights = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    before_copies()
    for d0 in range(0, D, BLOCK_D):
        in_d = d0 + d < D
        dyt = tl.load(dy_rows[:, None] + (d0 + d)[None, :], mask=keep[:, None] & in_d[None, :], other=0.0)
        at = image + k[None, :] * D + (d0 + d)[:, None]
        t = tl.load(at, mask=(k < K)[None, :] & in_d[:, None], other=0.0)
        dweights = tl.dot(dyt, t, dweights, input_precision=PRECISION)
    weights = 1 / (1 + tl.exp(-s))
    dscores = tl.where(keep[:, None], dweights * weights * (1 - weights), 0.0)
    at = row[:, None] * K + k[None, :]
    tl.store(scores + at, s, mask=keep[:, None] & (k < K)[None, :])
    tl.store(ds + at, dscores.to(ds.dtype.element_ty), mask=keep[:, None] & (k < K)[None, :])
    input_gradient(
        x_rows, keep, mean, rstd, normed, weights, dscores, wg, c, e, w2, image, dh, g, dx, row, keep, D, H,
        K, False, TANH, ONE, PRECISION, x.dtype.element_ty, BLOCK_N, BLOCK_D, BLOCK_H, BLOCK_K,
    )  # fmt: skip


def forward(
    x: Tensor, tokens: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, tanh: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op's forward: y [B,N,D] in x's dtype and stats [B,N,2] in float32."""
    (b, n, d), (k, h) = x.shape, w2.shape
    y, stats = x.new_empty((b, n, d)), x.new_empty((b, n, 2), dtype=torch.float32)
    if not symbolic(b) and b == 0:
        return y, stats
    x = rows_contiguous(x)
    folded = fold(x, w1, b1, norm_weight, norm_bias)
    tokens_read, w2_read, b2_read = tokens.contiguous(), contiguous(w2, x), contiguous(b2, x)

    def run(config: Config) -> tuple[Tensor, Tensor]:
        launch(
            forward_kernel, (b * ceil_div(n, config["BLOCK_N"]),), x, x, tokens_read, *folded, w2_read,
            b2_read, y, stats, n, d, h, k, *x.stride()[:2], eps, TANH=tanh, HAS_B2=b2 is not None,
            PRECISION=precision(x), BLOCK_K=padded(k), **hidden_blocks(h), **config,
        )  # fmt: skip
        return y, stats

    result: tuple[Tensor, Tensor] = configured("tokenfuser_forward", x, k, run)
    return result


def backward(
    dy: Tensor, x: Tensor, tokens: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, stats: Tensor, tanh: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The op's backward: dx [B,N,D] and dtokens [B,K,D] in x's dtype, the parameters' gradients in theirs."""
    (b, n, d), (k, h) = x.shape, w2.shape
    dx, parameters = x.new_empty((b, n, d)), Parameters(w1, b1, w2, b2, norm_weight, norm_bias)
    if not symbolic(b) and b == 0:
        return dx, x.new_empty((b, k, d)), *parameters.zero_gradients(x)
    x, dy = rows_contiguous(x), rows_contiguous(dy)
    folded = fold(x, w1, b1, norm_weight, norm_bias)
    tokens_read, w2_read, b2_read = tokens.contiguous(), contiguous(w2, x), contiguous(b2, x)
    saved, scores = Scratch.empty(x, h, k), x.new_empty((b, n, k), dtype=torch.float32)

    def run(config: Config) -> None:
        launch(
            backward_kernel, (b * ceil_div(n, config["BLOCK_N"]),), x, dy, x, tokens_read, *folded, w2_read,
            b2_read, stats, scores, dx, *saved, n, d, h, k, *x.stride()[:2], *dy.stride()[:2], TANH=tanh,
            HAS_B2=b2 is not None, PRECISION=precision(x), BLOCK_K=padded(k), **hidden_blocks(h), **config,
        )  # fmt: skip

    configured("tokenfuser_backward", x, k, run)
    dtokens, _ = pool(dy, scores, None, True, False)  # dtokens = m^T dY, and m is the sigmoid of the scores
    return dx, dtokens, *parameter_gradients(x, None, stats, saved, parameters)
