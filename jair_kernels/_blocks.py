"""The building blocks of composed ops on one backend: what surrounds their matrix products, and attention.

Matrix products come from PyTorch; rows are [R,D] with R = all tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import jair_kernels.add_norm
import jair_kernels.cross_attention
import jair_kernels.gate
import jair_kernels.gelu
from jair_kernels._autograd import cast
from jair_kernels._backends import block
from jair_kernels._direct import watched
from jair_kernels._products import added, product
from jair_kernels._sums import column_sum, row_dot

Tensor = torch.Tensor
_PLAIN = (Tensor, torch.nn.Parameter)  # of which a storage may be asked for
NEEDED = ("add_norm", "gelu", "cross_attention")


@dataclass(frozen=True)
class Norm:
    """A LayerNorm's parameters; weight None: there is no norm."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


def norm(backend: str, x: Tensor, p: Norm) -> tuple[Tensor, Tensor]:
    """(LN(x), statistics); without a norm (x, empty)."""
    if p.weight is None:
        return x, x.new_empty((0,))
    none = (None,) * 5
    _, y, stats = block("add_norm", backend).forward(x, *none, True, p.weight, p.bias, p.eps)
    return y, stats


def norm_again(backend: str, x: Tensor, stats: Tensor, p: Norm) -> Tensor:
    """LN(x) from kept statistics."""
    if p.weight is None:
        return x
    run = block("add_norm", backend).forward
    y: Tensor = run(x, stats, p.weight, p.bias, None, None, False, None, None, p.eps)[0]
    return y


def norm_backward(
    backend: str, dy: Tensor, residual: Tensor | None, x: Tensor, stats: Tensor, p: Norm
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias); dx with the gradient that arrives past the norm, the residual's, added."""
    if p.weight is None:
        return dy if residual is None else dy + residual, None, None
    dx, dweight, dbias = block("add_norm", backend).backward(dy, residual, x, stats, p.weight, p.bias)
    return dx, dweight, None if p.bias is None else dbias


def add(
    backend: str, x: Tensor, update: Tensor, gate: Tensor | None, base: tuple[Tensor, Norm] | None
) -> Tensor:
    """base + tanh(gate) update; base is x, or LN(x) where its (statistics, norm) are given."""
    stats, p = (None, Norm(None, None, 1.0)) if base is None else base
    run = block("add_norm", backend).forward
    z: Tensor = run(x, stats, p.weight, p.bias, update, gate, False, None, None, p.eps)[0]
    return z


def add_then_norm(
    backend: str, x: Tensor, update: Tensor, gate: Tensor | None, after: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, LN(z), statistics) with z = x + tanh(gate) update, in one pass."""
    if after.weight is None:
        z = add(backend, x, update, gate, None)
        return z, z, x.new_empty((0,))
    run = block("add_norm", backend).forward
    z, y, stats = run(x, None, None, None, update, gate, True, after.weight, after.bias, after.eps)
    return z, y, stats


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows weight^T + bias, in the dtype of the rows.

    A bias may cancel most of a product; so it is added before the sum is rounded, never to a rounded product.
    """
    return product(rows, weight.mT, None if bias is None else cast(bias, rows.dtype))


def key_value_weights(wk: Tensor, wv: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """wk and wv [h_kv d, D_kv] in the dtype of the products: as one tensor, wk's rows first, where that moves
    no more bytes than two, because both are cast or lie one behind the other; else as they are.
    """
    if watched():
        both = cast(wk, dtype), cast(wv, dtype)
        return both if dtype in (wk.dtype, wv.dtype) else (torch.cat(both),)
    size = (2 * wk.shape[0], wk.shape[1])
    if dtype not in (wk.dtype, wv.dtype):
        joint = wk.new_empty(size, dtype=dtype)
        for part, weight in zip(joint.chunk(2), (wk, wv), strict=True):
            part.copy_(weight)
        return (joint,)
    if wk.dtype == wv.dtype and _adjacent(wk, wv):
        return (wk.as_strided(size, wk.stride()),)
    return cast(wk, dtype), cast(wv, dtype)


def _adjacent(first: Tensor, second: Tensor) -> bool:
    """Whether both are rows of one storage, the second right behind the first."""
    return (
        type(first) in _PLAIN
        and type(second) in _PLAIN
        and first.device.type != "meta"
        and first.is_contiguous()
        and second.is_contiguous()
        and second.storage_offset() == first.storage_offset() + first.numel()
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def keys_and_values(
    rows: Tensor, weights: tuple[Tensor, ...], bk: Tensor | None, bv: Tensor | None
) -> tuple[Tensor, ...]:
    """Keys and values of rows: one tensor [R, 2 h_kv d] where the weights are one, else two [R, h_kv d]."""
    if len(weights) == 2:
        return linear(rows, weights[0], bk), linear(rows, weights[1], bv)
    half = weights[0].new_zeros(weights[0].shape[0] // 2)
    biases = [half if bias is None else cast(bias, rows.dtype) for bias in (bk, bv)]
    return (linear(rows, weights[0], None if bk is None and bv is None else torch.cat(biases)),)


def through_keys_and_values(dkv: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """The gradient that reaches the rows, from that of the keys and values [R, 2 h_kv d]."""
    if len(weights) == 1:
        return product(dkv, weights[0])
    dk, dv = dkv.chunk(2, dim=1)
    return added(product(dk, weights[0]), dv, weights[1])


def split_heads(kv: Sequence[Tensor], b: int, n: int, width: int) -> tuple[Tensor, Tensor]:
    """Keys and values [B,N,h_kv,d] of what `keys_and_values` returned, d = width, as views."""
    k, v = kv if len(kv) == 2 else kv[0].chunk(2, dim=1)
    size = (b, n, k.shape[1] // width, width)
    return k.view(size), v.view(size)


@dataclass(frozen=True)
class Gated:
    """The last product of a branch, tanh(gate) (inner weight^T + bias), as its backward needs it.

    alike: the rows of inner may have much in common, as attention's over the same keys have.
    """

    weight: Tensor
    bias: Tensor | None
    gate: Tensor | None
    backend: str
    alike: bool = False

    def backward(
        self, dz: Tensor, inner: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients (dweight, dbias, dgate), as far as needed.

        With G = dz^T inner, which dweight = tanh(gate) G needs anyway, the gate's gradient needs no output of
        the branch: dgate = (1 - tanh^2) (rows of weight . G + bias sum dz). Nothing is divided by the gate,
        which starts at 0. For rows that are alike, c, the bias may cancel most of it, and what rounding has
        left of G would tell little: there it is G = dz^T (inner - c) + (sum dz) c^T, which takes the bias to
        bias + weight c before anything is rounded.
        """
        need_weight, need_bias, need_gate = needs
        if self.gate is None:
            of_all = product(dz.mT, inner) if need_weight else None
            return of_all, column_sum(dz) if need_bias else None, None
        centre = self._centre(inner) if need_gate else None
        rows = inner if centre is None else inner - centre
        of_all = product(dz.mT, rows) if need_weight or need_gate else None
        total = column_sum(dz) if self.bias is not None and (need_bias or need_gate) else None
        if self.backend == "triton" and need_gate and of_all is not None:
            fused = jair_kernels.gate.op.backward(of_all, self.weight, total, self.bias, centre, self.gate)
            dweight, dbias, dgate = fused
            dgate = dgate if self.gate.numel() > 1 else dgate.sum(0, keepdim=True)
            return dweight, None if total is None else dbias, dgate
        factor = self.gate.to(dz.dtype if dz.dtype == torch.float64 else torch.float32).tanh()
        dgate = None
        if need_gate and of_all is not None:
            along = row_dot(self.weight, of_all)
            if total is not None and self.bias is not None:
                shift = self.bias.to(factor.dtype)
                if centre is not None:
                    shift = shift + row_dot(self.weight, centre.expand_as(self.weight))
                along = along + shift * total
            dgate = (1 - factor.square()) * (
                along if factor.numel() == along.numel() else along.sum(0, keepdim=True)
            )
        dweight = None
        if need_weight and of_all is not None:
            dweight = of_all.mul_(factor.unsqueeze(1).to(of_all.dtype))  # in place: G has served
            if centre is not None and total is not None:
                dweight.addcmul_((factor * total).to(of_all.dtype).unsqueeze(1), centre)  # addr_ is slow
        return dweight, None if total is None or not need_bias else factor * total, dgate

    def _centre(self, inner: Tensor) -> Tensor | None:
        """What the rows have in common, where it matters: their mean; wide dtypes have digits to spare."""
        if not self.alike or self.bias is None or inner.dtype not in (torch.bfloat16, torch.float16):
            return None
        if inner.is_cuda and not torch.compiler.is_compiling() and inner.shape[0] > 0:
            return inner.mean(0)  # which sums in float32 there
        mean: Tensor = column_sum(inner) / torch.sym_max(inner.shape[0], 1)
        return mean.to(inner.dtype)

    def through(self, dz: Tensor) -> Tensor:
        """The gradient that reaches `inner`."""
        if self.gate is None:
            return product(dz, self.weight)
        factor = self.gate.tanh().to(dz.dtype)
        if (
            self.backend == "triton"
            and not torch.compiler.is_compiling()
            and dz.shape[0] > self.weight.shape[1]
        ):
            return dz @ (self.weight * factor.unsqueeze(1))  # the smaller of both is scaled
        return product(dz * factor, self.weight)


def like_inputs(grads: dict[str, Tensor | None], inputs: Any, needed: Any) -> tuple[Tensor | None, ...]:
    """Gradients by the names of a NamedTuple's fields, in their order and each in its input's own dtype; None
    where nobody asked or the input is absent.
    """
    triples = ((grads.get(name), t, getattr(needed, name)) for name, t in inputs._asdict().items())
    return tuple(None if g is None or t is None or not need else cast(g, t.dtype) for g, t, need in triples)
