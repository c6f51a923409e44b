"""Matrix products of PyTorch, as the Triton kernels of composed passes use them."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def wide(a: Tensor, b: Tensor) -> Tensor:
    """a b, of two or three axes, in float32: what the product has summed is not rounded."""
    run = torch.mm if a.dim() == 2 else torch.bmm
    if a.dtype == torch.float32:
        return run(a, b)
    if a.is_cuda:
        return run(a, b, out_dtype=torch.float32)
    return run(a.float(), b.float())  # only CUDA has products of another dtype


def tokens_times(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T [B,N,H] in float32, weight [H,D]: one product for all tokens where they are rows of one
    matrix, else one for each image, which reads x where it lies.
    """
    b, n, d = x.shape
    if x.stride(0) == n * x.stride(1):
        return wide(x.reshape(b * n, d), weight.mT).view(b, n, weight.shape[0])
    return wide(x, weight.mT.expand(b, d, weight.shape[0]))
