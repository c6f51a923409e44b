"""The ops against the latent attention of Perceiver-VL (2211.11701), written out from the definition: learned
latents are the queries, the keys are image ++ text, whose padding is not attended.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from held import Leaves, assert_held, backends, methods, normal, padded

import jair_kernels as jk

Tensor = torch.Tensor


class Shape(NamedTuple):
    latents: int
    image: int
    lengths: tuple[int, ...]  # of the texts, padded to the longest
    width: int
    heads: int
    iterations: int


SHAPES = {
    "Perceiver-VL / 16": Shape(8, 10, (4, 1, 0), 48, 12, 2),
    "odd": Shape(3, 1, (7, 2), 15, 3, 3),
    "one": Shape(1, 1, (1,), 8, 1, 1),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
MATRICES = {"wq": 1, "wk": 1, "wv": 1, "wo": 1, "w1": 4, "w2": 4}
NORMS = ("latents", "keys", "mlp")


def model(s: Shape) -> tuple[Leaves, Tensor]:
    """All leaves, and which of the keys are kept. The layer's weights are shared by the iterations."""
    d, b, text = s.width, len(s.lengths), max(s.lengths)
    leaves = {"latents": normal(s.latents, d, seed=1), "image": normal(b, s.image, d, seed=2)}
    leaves["text"] = normal(b, text, d, seed=3)
    for i, (name, times) in enumerate(MATRICES.items()):
        out, width = (d, d * times) if name == "w2" else (d * times, d)
        leaves[name] = normal(out, width, seed=10 + i) / width**0.5
        leaves[f"b{name[1:]}"] = normal(out, seed=20 + i) / 3
    for i, name in enumerate(NORMS):
        leaves[f"{name}_weight"], leaves[f"{name}_bias"] = (
            1 + normal(d, seed=30 + i) / 3,
            normal(d, seed=40 + i),
        )
    keep = torch.cat([torch.ones(b, s.image, dtype=torch.bool), padded(s.lengths, text)], dim=1)
    return {name: t.requires_grad_() for name, t in leaves.items()}, keep


def normed(x: Tensor, p: Leaves, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}_weight"], p[f"{name}_bias"])


def mlp(x: Tensor, p: Leaves) -> Tensor:
    return F.linear(F.gelu(F.linear(normed(x, p, "mlp"), p["w1"], p["b1"])), p["w2"], p["b2"])


def by_definition(s: Shape, p: Leaves) -> Tensor:
    """A sample at a time, its padding cut off; a head at a time."""
    out = []
    for image, text, length in zip(p["image"], p["text"], s.lengths, strict=True):
        z, keys = p["latents"], normed(torch.cat([image, text[:length]]), p, "keys")
        k, v = F.linear(keys, p["wk"], p["bk"]), F.linear(keys, p["wv"], p["bv"])
        for _ in range(s.iterations):
            q = F.linear(normed(z, p, "latents"), p["wq"], p["bq"])
            by_head = zip(*(t.chunk(s.heads, dim=-1) for t in (q, k, v)), strict=True)
            pooled = [F.softmax(a @ b.T / a.shape[-1] ** 0.5, dim=-1) @ c for a, b, c in by_head]
            z = z + F.linear(torch.cat(pooled, dim=-1), p["wo"], p["bo"])
            z = z + mlp(z, p)
        out.append(z)
    return torch.stack(out)


@methods()
@each_shape
def test_latent_resample(backend: str, method: str, shape: Shape) -> None:
    p, keep = model(shape)

    def ours() -> Tensor:
        z, keys = p["latents"], torch.cat([p["image"], p["text"]], dim=1)
        for _ in range(shape.iterations):
            z = z + jk.fused_latent_resample(
                keys, z, p["wq"], p["wk"], p["wv"], p["wo"], num_heads=shape.heads, bq=p["bq"], bk=p["bk"],
                bv=p["bv"], bo=p["bo"], x_norm=(p["keys_weight"], p["keys_bias"]),
                latents_norm=(p["latents_weight"], p["latents_bias"]), mask=keep, method=method,
                backend=backend,
            )  # fmt: skip
            z = z + mlp(z, p)
        return z

    assert_held(ours, lambda: by_definition(shape, p), p)


@backends("fused_gated_fusion")
@each_shape
def test_gated_fusion(backend: str, shape: Shape) -> None:
    """One iteration is the block without gates."""
    p, keep = model(shape)
    params = jk.GatedFusionParams(
        p["latents_weight"], p["latents_bias"], p["keys_weight"], p["keys_bias"],
        p["wq"], p["bq"], p["wk"], p["bk"], p["wv"], p["bv"], p["wo"], p["bo"],
        p["mlp_weight"], p["mlp_bias"], p["w1"], p["b1"], p["w2"], p["b2"], None, None,
    )  # fmt: skip

    def ours() -> Tensor:
        z = p["latents"].expand(len(shape.lengths), -1, -1)
        keys = torch.cat([p["image"], p["text"]], dim=1)
        for _ in range(shape.iterations):
            z = jk.fused_gated_fusion(
                z, keys, params, num_heads=shape.heads, form="flamingo", mask=keep, backend=backend
            )
        return z

    assert_held(ours, lambda: by_definition(shape, p), p)
