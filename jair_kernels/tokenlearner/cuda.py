"""fused_tokenlearner in CUDA C++: three passes over x, and in Triton what is as small as the weights.

An image is cut into shares of tokens, as many as fill a large GPU twice; their number does not depend on the
GPU at hand, so neither do the bits of a result.
"""

from __future__ import annotations

import torch

from jair_kernels._triton import ceil_div
from jair_kernels._triton_grad import Parameters, gradients_of_sums
from jair_kernels._triton_hidden import fold, fold_and_dot
from jair_kernels._triton_pool import PROGRAMS, merge

Tensor = torch.Tensor

_ROWS = 32  # tokens of a step
_SUMS = {384: 128, 512: 64, 768: 64, 1024: 64}  # shares of all tokens that weights are summed over, by width


def _aligned(x: Tensor) -> Tensor:
    """x itself where rows can be read in pieces of 16 bytes, else a copy."""
    fits = x.stride(2) == 1 and all(x.stride(i) % 8 == 0 for i in (0, 1)) and x.storage_offset() % 8 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _shares(b: int, n: int) -> tuple[int, int]:
    """(shares of an image, tokens of a share)."""
    tokens = _ROWS * ceil_div(ceil_div(n, max(1, PROGRAMS // b)), _ROWS)
    return ceil_div(n, tokens), tokens


def _second_layer(x: Tensor, w2: Tensor, b2: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """w2 in x's dtype, b2 in x's or float32."""
    if b2 is not None:
        b2 = (b2 if b2.dtype in (x.dtype, torch.float32) else b2.float()).contiguous()
    return w2.to(x.dtype).contiguous(), b2


def forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, norm_weight: Tensor | None,
    norm_bias: Tensor | None, mask: Tensor | None, eps: float, tanh: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The op's forward: y [B,K,D] in x's dtype, max and 1/sum [B,K,2] and stats [B,N,2] in float32. No hidden
    layer: the backward's one reading of x gives it again.
    """
    (b, n, d), k = x.shape, w2.shape[0]
    nothing = x.new_empty((b, n, 0))
    if b == 0:
        y, softmax = x.new_empty((0, k, d)), x.new_empty((0, k, 2), dtype=torch.float32)
        return y, softmax, x.new_empty((0, n, 2), dtype=torch.float32), nothing
    x = _aligned(x)
    shares, tokens = _shares(b, n)
    operands = (*fold(x, w1, b1, norm_weight, norm_bias), *_second_layer(x, w2, b2))
    run = torch.ops.jair_kernels.tokenlearner_pool.default
    pooled, pairs, stats = run(x, *operands, mask, eps, tanh, shares, tokens)
    if shares == 1:
        return pooled, pairs.view(b, k, 2), stats, nothing
    y, softmax = x.new_empty((b, k, d)), x.new_empty((b, k, 2), dtype=torch.float32)
    merge(pooled, pairs, mask, n, y, softmax, False)
    return y, softmax, stats, nothing


def backward(
    dy: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, mask: Tensor | None, y: Tensor, softmax: Tensor,
    stats: Tensor, hidden: Tensor, tanh: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The op's backward: dx [B,N,D] in x's dtype, the parameters' gradients in theirs."""
    (b, n, d), (k, h) = x.shape, w2.shape
    parameters = Parameters(w1, b1, w2, b2, norm_weight, norm_bias)
    if b == 0:
        return x.new_empty(x.shape), *parameters.zero_gradients(x)
    x, dy = _aligned(x), _aligned(dy.contiguous())
    softmax, stats = softmax.contiguous(), stats.contiguous()
    folded, delta = fold_and_dot(x, y.contiguous(), dy, w1, b1, norm_weight, norm_bias)
    operands, ops = (*folded, *_second_layer(x, w2, b2)), torch.ops.jair_kernels
    dx, dh, g, ds = ops.tokenlearner_inputs.default(
        dy, x, *operands, mask, softmax, stats, delta, tanh, *_shares(b, n)
    )
    tokens = _ROWS * ceil_div(ceil_div(b * n, _SUMS[d]), _ROWS)
    parts = ops.tokenlearner_sums.default(x, mask, stats, dh, g, ds, h, k, tokens)
    return dx, *gradients_of_sums(x, parts, parts.shape[0], parameters)
