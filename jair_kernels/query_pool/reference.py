"""Plain PyTorch; the definition of the building block query_pool."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jair_kernels.token_pool.reference import token_pool


def query_pool(
    x: torch.Tensor,
    queries: torch.Tensor,
    mask: torch.Tensor | None = None,
    norm: bool = False,
    eps: float = 1e-5,
) -> torch.Tensor:
    """y[b,k] = sum_n softmax_n(xhat[b] queries[b]^T)[n,k] xhat[b,n].

    xhat is x, with `norm` its LayerNorm without scale and shift. x [B,N,D], queries [B,K,D] or [1,K,D] with
    the softmax scale in them, mask [B,N] bool -> [B,K,D].
    """
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0)
    xhat = F.layer_norm(x, x.shape[-1:], eps=eps) if norm else x
    return token_pool(xhat, xhat @ queries.mT, mask=mask)
