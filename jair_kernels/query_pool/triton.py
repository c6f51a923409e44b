"""query_pool on a GPU: PyTorch's matrix products with Triton kernels between them.

    S = xhat queries^T      P = softmax over tokens of S      y = P^T xhat
    dP = xhat dY^T          dS = P (dP - sum_n P dP)          dqueries = dS^T xhat
    dx = LN'(P dY + dS queries)

Scores and dP are left in float32 by their products, P and dS rounded for the next ones, as y is.
"""

from __future__ import annotations

import torch

from jair_kernels._plain import zero_masked
from jair_kernels._products import tokens_times, wide
from jair_kernels._triton import symbolic
from jair_kernels._triton_norm import normalised, through_norm
from jair_kernels.query_pool.triton_softmax import score_gradient, weights_of

__all__ = ["backward", "forward"]

Tensor = torch.Tensor


def forward(
    x: Tensor, queries: Tensor, mask: Tensor | None, norm: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The op's forward: y [B,K,D] in x's dtype, max and 1/sum [B,K,2] and stats (with `norm` [B,N,2])."""
    (b, n, d), k = x.shape, queries.shape[1]
    if not symbolic(b) and b == 0:
        softmax, stats = (
            x.new_empty(size, dtype=torch.float32) for size in ((b, k, 2), (b, n, 2) if norm else (0,))
        )
        return x.new_empty((b, k, d)), softmax, stats
    xhat, stats = _tokens(x, mask, norm, eps, None)
    p, softmax = weights_of(_scores(xhat, queries), mask, x)
    return torch.bmm(p.mT, xhat), softmax, stats


def backward(
    dy: Tensor,
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    y: Tensor,
    softmax: Tensor,
    stats: Tensor,
    norm: bool,
) -> tuple[Tensor, Tensor]:
    """The op's backward: dx [B,N,D] and dqueries like queries, in x's dtype."""
    b = x.shape[0]
    if not symbolic(b) and b == 0:
        return x.new_empty(x.shape), queries.new_zeros(queries.shape)
    xhat, _stats = _tokens(x, mask, norm, 0.0, stats)
    p, ds = score_gradient(_scores(xhat, queries), _scores(xhat, dy), mask, x)
    if _shared(queries):
        rows, of_all = xhat.reshape(-1, x.shape[2]), ds.flatten(0, 1)
        dqueries = wide(of_all.mT, rows).to(x.dtype).unsqueeze(0)
        g = (of_all @ queries[0]).view(x.shape)
    else:
        dqueries, g = torch.bmm(ds.mT, xhat), torch.bmm(ds, queries)
    del xhat, ds
    g.baddbmm_(p, dy)
    if norm:
        through_norm(g, x, mask, stats)
    return g, dqueries


def _tokens(
    x: Tensor, mask: Tensor | None, norm: bool, eps: float, stats: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(xhat with masked rows 0, statistics of the rows), these from `stats` where they are given."""
    if norm:
        return normalised(x, mask, eps, stats)
    return zero_masked(x, mask), x.new_empty((0,), dtype=torch.float32) if stats is None else stats


def _scores(xhat: Tensor, queries: Tensor) -> Tensor:
    """xhat queries^T [B,N,K] in float32, one product for the batch where the queries are shared."""
    if _shared(queries):
        return tokens_times(xhat, queries[0])
    return wide(xhat, queries.mT)


def _shared(queries: Tensor) -> bool:
    """Whether all images have the same queries."""
    return not symbolic(queries.shape[0]) and queries.shape[0] == 1
