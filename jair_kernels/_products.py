"""Matrix products of PyTorch, as composed passes use them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from jair_kernels import _library
from jair_kernels._direct import alone

Tensor = torch.Tensor

_WORTHWHILE = 1 << 21  # multiplications; below, the call of oneDNN takes as long as what it saves
_DEPTH = 1024  # that one of its sums may have: twice as deep, it has more than twice the error of MKL's


def _onednn() -> Callable[..., Tensor] | None:
    """oneDNN's product, where PyTorch's, MKL's in float32, use half of what the processor has: MKL keeps
    AVX-512 for Intel's. PyTorch has oneDNN for convolutions and for the code of its compiler.
    """
    operators = torch.ops.mkldnn
    if _library.load_error is not None or not hasattr(operators, "_linear_pointwise"):
        return None
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return operators._linear_pointwise if wide and torch.ops.jair_kernels.cpu_is_not_intel() else None


_ONEDNN = _onednn()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias of matrices [m,k] and [k,n]; the bias is added before the sum is rounded."""
    if (
        _ONEDNN is not None
        and not torch.compiler.is_compiling()
        and a.dtype == torch.float32
        and a.device.type == "cpu"
        and a.shape[0] * a.shape[1] * b.shape[1] >= _WORTHWHILE
        and alone((a, b) if bias is None else (a, b, bias))
        and torch.backends.mkldnn.enabled
    ):
        parts = max(1, -(-a.shape[1] // _DEPTH))
        pieces = zip(a.chunk(parts, 1), b.chunk(parts), strict=True)
        left, right = next(pieces)
        y = _ONEDNN(left, right.mT, bias, "none", [], "")
        for left, right in pieces:
            y.add_(_ONEDNN(left, right.mT, None, "none", [], ""))
        return y
    return a @ b if bias is None else torch.addmm(bias, a, b)


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
