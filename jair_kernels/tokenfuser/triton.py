"""fused_tokenfuser on a GPU: PyTorch's matrix products with Triton kernels between them.

    h = w1 LN(x) + b1      M = sigmoid(w2 gelu(h) + b2)      y = M tokens
    dM = dY tokens^T       dS = dM M (1 - M)      dH = (dS w2) gelu'(h)      dx = LN'(dH w1)

What reads x or dY is a product of PyTorch but for dx and the parameters' gradients.
"""

from __future__ import annotations

import torch

from jair_kernels._products import wide
from jair_kernels._triton import rows_contiguous, symbolic
from jair_kernels._triton_grad import Parameters, parameter_gradients
from jair_kernels._triton_hidden import fold, hidden, hidden_again
from jair_kernels._triton_inputs import input_gradients
from jair_kernels._triton_mlp import scores

Tensor = torch.Tensor


def forward(
    x: Tensor, tokens: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, tanh: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The op's forward: y [B,N,D] in x's dtype, stats [B,N,2] in float32, and in x's dtype h [B,N,H], [B,N,0]
    unless `keep`.
    """
    (b, n, d), h = x.shape, w1.shape[0]
    if not symbolic(b) and b == 0:
        stats = x.new_empty((b, n, 2), dtype=torch.float32)
        return x.new_empty((b, n, d)), stats, x.new_empty((b, n, h if keep else 0))
    layer, stats = hidden(x, None, w1, b1, norm_weight, norm_bias, eps)
    weights, kept = scores(layer, stats, w2, b2, tanh, True, keep)
    return torch.bmm(weights, tokens), stats, kept


def backward(
    dy: Tensor, x: Tensor, tokens: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, stats: Tensor, kept: Tensor, tanh: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The op's backward: dx [B,N,D] and dtokens [B,K,D] in x's dtype, the parameters' gradients in theirs."""
    parameters = Parameters(w1, b1, w2, b2, norm_weight, norm_bias)
    if not symbolic(x.shape[0]) and x.shape[0] == 0:
        return x.new_empty(x.shape), tokens.new_empty(tokens.shape), *parameters.zero_gradients(x)
    x, stats = rows_contiguous(x), stats.contiguous()
    layer = hidden_again(x, None, stats, kept, fold(x, w1, b1, norm_weight, norm_bias))
    dx, weights, saved = input_gradients(x, None, layer, stats, w2, b2, wide(dy, tokens.mT), None, None, tanh)
    dtokens = torch.bmm(weights.mT, dy)
    return dx, dtokens, *parameter_gradients(x, None, stats, saved, parameters)
