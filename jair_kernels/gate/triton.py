"""gate in Triton: one program has a row of the weight and of its gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._triton import contiguous, launch, padded, rows_contiguous
from jair_kernels._triton_rows import new_gradient
from jair_kernels.add_norm.triton import gate_factor

Tensor = torch.Tensor


@triton.jit
def backward_kernel(
    product, weight, total, bias, centre, gate, dweight, dbias, dgate, M, product_r, weight_r,
    CHANNELS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CENTRE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """With G = product + total centre^T: dweight = f G, dbias = f total, dgate = (1 - f^2) (weight . G + bias
    total), f the gate's tanh.
    """
    row = tl.program_id(0).to(tl.int64)
    f = gate_factor(tl.load(gate + row * CHANNELS).to(tl.float32))
    along, around = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    for m0 in range(0, M, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        w = tl.load(weight + row * weight_r + m, mask=m < M, other=0.0).to(tl.float32)
        along += w * tl.load(product + row * product_r + m, mask=m < M, other=0.0).to(tl.float32)
        if HAS_CENTRE:
            around += w * tl.load(centre + m, mask=m < M, other=0.0).to(tl.float32)
    slope, of_rows = tl.sum(along, 0), 0.0
    if HAS_BIAS:
        of_rows = tl.load(total + row)
        shift = tl.load(bias + row).to(tl.float32)
        if HAS_CENTRE:
            shift += tl.sum(around, 0)
        slope += shift * of_rows
        tl.store(dbias + row, (f * of_rows).to(dbias.dtype.element_ty))
    tl.store(dgate + row, (1 - f * f) * slope)
    for m0 in range(0, M, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        g = tl.load(product + row * product_r + m, mask=m < M, other=0.0).to(tl.float32)
        if HAS_CENTRE:
            g += of_rows * tl.load(centre + m, mask=m < M, other=0.0).to(tl.float32)
        tl.store(dweight + row * M + m, (f * g).to(dweight.dtype.element_ty), mask=m < M)


def backward(
    product: Tensor, weight: Tensor, total: Tensor | None, bias: Tensor | None, centre: Tensor | None,
    gate: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the weight [D,M] and the bias [D], and those of the gate by rows [D] in float32.

    product is dz^T (inner - centre), total the sum of dz over its rows; total and bias come together, centre
    with them.
    """
    d, m = product.shape
    product, weight = rows_contiguous(product), rows_contiguous(weight)
    dweight, dbias = product.new_empty((d, m)), new_gradient(bias, product)
    dgate = product.new_empty((d,), dtype=torch.float32)
    launch(
        backward_kernel, (d,), product, product, weight,
        *(contiguous(t, product) for t in (total, bias, centre, gate)), dweight, dbias, dgate, m,
        product.stride(0), weight.stride(0), CHANNELS=int(gate.numel() > 1), HAS_BIAS=bias is not None,
        HAS_CENTRE=centre is not None, BLOCK_M=padded(m, at_most=1024), num_warps=4,
    )  # fmt: skip
    return dweight, dbias, dgate
