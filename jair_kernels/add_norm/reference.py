"""Plain PyTorch; the definition of add_norm."""

from __future__ import annotations

import torch

from jair_kernels._autograd import accumulate_dtype

Tensor = torch.Tensor


def add_norm_forward(
    x: Tensor,
    x_stats: Tensor | None,
    x_weight: Tensor | None,
    x_bias: Tensor | None,
    update: Tensor | None,
    gate: Tensor | None,
    norm: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """z = base + tanh(gate) update, then y = LN(z) if `norm`, over rows.

        base = x, or LN(x) = (x - mean) rstd x_weight + x_bias with x_stats (mean, rstd)

    Args:
        x, update: [R,D]. x_stats: [R,2]. x_weight, x_bias, weight, bias: [D]. gate: [1] or [D].
            Without an update nothing is added; without a gate its factor is 1; weight 1 and bias 0 likewise.

    Returns:
        z [R,D], empty where it would be x; y [R,D] and its stats [R,2], empty unless `norm`. Computed in
        float32, for float64 in float64; the statistics are those of z as rounded to x's dtype.
    """
    wide = accumulate_dtype(x.dtype)
    z, nothing = x.to(wide), x.new_empty((0,))
    if x_stats is not None:
        z = _affine((z - x_stats[:, :1]) * x_stats[:, 1:], x_weight, x_bias)
    if update is not None:
        z = z + (update.to(wide) if gate is None else gate.to(wide).tanh() * update.to(wide))
    z = z.to(x.dtype)
    out = nothing if x_stats is None and update is None else z
    if not norm:
        return out, nothing, x.new_empty((0,), dtype=wide)
    mean = z.to(wide).mean(1, keepdim=True)
    centred = z.to(wide) - mean
    stats = torch.cat([mean, (centred.square().mean(1, keepdim=True) + eps).rsqrt()], 1)
    y = _affine(centred * stats[:, 1:], weight, bias)
    return out, y.to(x.dtype), stats


def add_norm_backward(
    dy: Tensor, dz: Tensor | None, z: Tensor, stats: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of LN(z), dz added to that of z; those of absent parameters are empty."""
    wide = accumulate_dtype(z.dtype)
    normal = (z.to(wide) - stats[:, :1]) * stats[:, 1:]
    g = dy.to(wide) if weight is None else dy.to(wide) * weight.to(wide)
    dx = (g - g.mean(1, keepdim=True) - normal * (g * normal).mean(1, keepdim=True)) * stats[:, 1:]
    if dz is not None:
        dx = dx + dz.to(wide)
    nothing = z.new_empty((0,), dtype=wide)
    dweight = nothing if weight is None else (dy.to(wide) * normal).sum(0).to(weight.dtype)
    dbias = nothing if bias is None else dy.to(wide).sum(0).to(bias.dtype)
    return dx.to(z.dtype), dweight, dbias


def _affine(normal: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normal if weight is None else normal * weight.to(normal.dtype)
    return scaled if bias is None else scaled + bias.to(normal.dtype)
