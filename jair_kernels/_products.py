"""Matrix products of PyTorch, as composed passes use them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from jair_kernels import _library
from jair_kernels._direct import alone, watched

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
    if not _is_for_onednn(a, b, *(() if bias is None else (bias,))):
        return a @ b if bias is None else torch.addmm(bias, a, b)
    (left, right), *rest = _pieces(a, b)
    y = _by_onednn(left, right, bias)
    for left, right in rest:
        y.add_(_by_onednn(left, right))
    return y


def added(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a b, in the place of total, of which PyTorch would first make a copy."""
    if watched():
        return torch.addmm(total, a, b)
    if not _is_for_onednn(a, b, total):
        return torch.addmm(total, a, b, out=total)
    for left, right in _pieces(a, b):
        total.add_(_by_onednn(left, right))
    return total


def _is_for_onednn(a: Tensor, b: Tensor, *others: Tensor) -> bool:
    return (
        _ONEDNN is not None
        and not torch.compiler.is_compiling()
        and a.dtype == torch.float32
        and a.device.type == "cpu"
        and a.shape[0] * a.shape[1] * b.shape[1] >= _WORTHWHILE
        and alone((a, b, *others))
        and bool(torch.backends.mkldnn.enabled)
    )


def _pieces(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    parts = -(-a.shape[1] // _DEPTH)
    return list(zip(a.chunk(parts, 1), b.chunk(parts), strict=True))


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    assert _ONEDNN is not None
    # Whatever lies between the rows of the second operand sends oneDNN to loops of a hundredth of the speed.
    weight = b.mT if b.is_contiguous() else b.mT.contiguous()
    return _ONEDNN(a, weight, bias, "none", [], "")


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
