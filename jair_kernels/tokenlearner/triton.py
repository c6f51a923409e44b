"""fused_tokenlearner on a GPU: PyTorch's matrix products with Triton kernels between them.

    h = w1 LN(x) + b1      S = w2 gelu(h) + b2      y = softmax_n(S)^T x, pooled as by fused_token_pool
    dP = x dY^T            dS = P (dP - delta)      dH = (dS w2) gelu'(h)      dx = P dY + LN'(dH w1)

PyTorch's are the products of x with w1 and with dY; delta is the sum of P dP over that of P.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._products import wide
from jair_kernels._triton import ceil_div, contiguous, launch, precision, rows_contiguous, symbolic
from jair_kernels._triton_grad import Parameters, parameter_gradients
from jair_kernels._triton_hidden import Hidden, fold, hidden, hidden_again
from jair_kernels._triton_inputs import input_gradients
from jair_kernels._triton_mlp import score_blocks, scores, scores_again
from jair_kernels._triton_pool import load_softmax, mask_arguments, softmax_weights
from jair_kernels.token_pool.triton import forward as pool

Tensor = torch.Tensor


@triton.jit
def sums_kernel(
    mask, products, dweights, wg, c, e, w2, b2, stats, softmax, sums, N, H, K, m_b, m_n, TANH: tl.constexpr,
    HAS_B2: tl.constexpr, HAS_MASK: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """sum p dP and sum p over one block of tokens, [2,K], as the backward takes p and dP."""
    b, _n, _row, keep, _mean, _rstd, s, dp = scores_again(
        mask, products, dweights, wg, c, e, w2, b2, stats, N, H, K, m_b, m_n, TANH, HAS_B2, HAS_MASK, KEPT,
        PRECISION, BLOCK_N, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    k = tl.arange(0, BLOCK_K)
    top, inverse = load_softmax(softmax + 2 * b * K, k, K)
    weights = softmax_weights(s, top, inverse, keep)
    to = sums + tl.program_id(0).to(tl.int64) * 2 * K + k
    tl.store(to, tl.sum(weights * dp, 0), mask=k < K)
    tl.store(to + K, tl.sum(weights, 0), mask=k < K)


def forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, norm_weight: Tensor | None,
    norm_bias: Tensor | None, mask: Tensor | None, eps: float, tanh: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The op's forward: y [B,K,D] in x's dtype, max and 1/sum [B,K,2] and stats [B,N,2] in float32, and h
    [B,N,H] in x's dtype, [B,N,0] unless `keep`.
    """
    (b, n, d), (k, h) = x.shape, w2.shape
    if not symbolic(b) and b == 0:
        softmax, stats = (x.new_empty(shape, dtype=torch.float32) for shape in ((b, k, 2), (b, n, 2)))
        return x.new_empty((b, k, d)), softmax, stats, x.new_empty((b, n, h if keep else 0))
    layer, stats = hidden(x, mask, w1, b1, norm_weight, norm_bias, eps)
    s, kept = scores(layer, stats, w2, b2, tanh, False, keep)
    y, softmax = pool(x, s, mask, False, False)
    return y, softmax, stats, kept


def weight_sums(
    x: Tensor, mask: Tensor | None, layer: Hidden, stats: Tensor, w2: Tensor, b2: Tensor | None,
    dweights: Tensor, softmax: Tensor, tanh: bool,
) -> Tensor:  # fmt: skip
    """The sums over tokens of P dP and of P [B,2,K]."""
    (b, n, _), (k, h) = x.shape, w2.shape
    blocks = score_blocks(x, k)
    count = ceil_div(n, blocks["BLOCK_N"])
    if not symbolic(count) and count == 1:
        return softmax  # which nobody reads: a block that is the whole image sums by itself
    sums = x.new_empty((b, count, 2, k), dtype=torch.float32)
    mask_or_x, *mask_strides = mask_arguments(mask, x)
    launch(
        sums_kernel, (b * count,), x, mask_or_x, layer.products, dweights, layer.wg, layer.c, layer.e,
        contiguous(w2, x), contiguous(b2, x), stats, softmax, sums, n, h, k, *mask_strides, TANH=tanh,
        HAS_B2=b2 is not None, HAS_MASK=mask is not None, KEPT=layer.kept, PRECISION=precision(x), **blocks,
    )  # fmt: skip
    return sums.sum(1)


def backward(
    dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, mask: Tensor | None, y: Tensor | None,
    softmax: Tensor, stats: Tensor, kept: Tensor, tanh: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The op's backward: dx [B,N,D] in x's dtype, the parameters' gradients in theirs."""
    parameters = Parameters(w1, b1, w2, b2, norm_weight, norm_bias)
    if not symbolic(x.shape[0]) and x.shape[0] == 0:
        return x.new_empty(x.shape), *parameters.zero_gradients(x)
    x, dy, stats, softmax = rows_contiguous(x), dy.contiguous(), stats.contiguous(), softmax.contiguous()
    layer = hidden_again(x, mask, stats, kept, fold(x, w1, b1, norm_weight, norm_bias))
    dweights = wide(x, dy.mT)
    # delta is their quotient, not y . dy: y is rounded, and so is P.
    sums = weight_sums(x, mask, layer, stats, w2, b2, dweights, softmax, tanh)
    dx, _, saved = input_gradients(x, mask, layer, stats, w2, b2, dweights, (softmax, sums), dy, tanh)
    return dx, *parameter_gradients(x, mask, stats, saved, parameters)
