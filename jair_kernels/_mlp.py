"""The MLP sublayer of gated fusion and of the transformer layer: z + tanh(gate) (w2 gelu(w1 a + b1) + b2)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from jair_kernels import _blocks
from jair_kernels._backends import block
from jair_kernels._products import product

Tensor = torch.Tensor


class Mlp(NamedTuple):
    """Parameters in the dtype of the products (weights), or in their own (vectors)."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    gate: Tensor | None
    tanh: bool


def forward(backend: str, z: Tensor, a: Tensor, p: Mlp) -> tuple[Tensor, Tensor]:
    """(output, h = w1 a + b1, which is kept)."""
    h = _blocks.linear(a, p.w1, p.b1)
    g = block("gelu", backend).forward(h, p.tanh)
    return _blocks.add(backend, z, _blocks.linear(g, p.w2, p.b2), p.gate, None), h


class MlpGradients(NamedTuple):
    """None where not needed."""

    a: Tensor
    w1: Tensor | None
    b1: Tensor | None
    w2: Tensor | None
    b2: Tensor | None
    gate: Tensor | None


def backward(
    backend: str, dy: Tensor, a: Tensor, h: Tensor, p: Mlp, needs: tuple[bool, bool, bool, bool, bool]
) -> MlpGradients:
    """Gradients past the branch; that of the residual is dy itself. `needs`: w1, b1, w2, b2, gate."""
    last = _blocks.Gated(p.w2, p.b2, p.gate, backend)
    dh, g, total = block("gelu", backend).backward(last.through(dy), h, p.tanh, needs[1])
    dw2, db2, dgate = last.backward(dy, g, needs[2:])
    del g  # as large as h: not beside what follows
    dw1 = product(dh.mT, a) if needs[0] else None
    return MlpGradients(product(dh, p.w1), dw1, total if needs[1] else None, dw2, db2, dgate)
