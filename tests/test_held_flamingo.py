"""The ops against Flamingo (2204.14198): layers of its PerceiverResampler, and its gated cross-attention with
media masks, written out from the definition head by head, the media mask also token by token.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from held import Leaves, assert_held, backends, methods, normal

import jair_kernels as jk

Tensor = torch.Tensor


def drawn(seed: int, **shapes: tuple[int, ...]) -> Leaves:
    """Parameters: matrices of unit gain, norms near 1, the rest near 0."""
    made = {}
    for i, (name, shape) in enumerate(shapes.items()):
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        shift = 1.0 if name.endswith("_weight") else 0.0
        made[name] = (normal(*shape, seed=seed + i) * scale + shift).requires_grad_()
    return made


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """One sample: q [L,h d], k and v [N,h d]; a softmax over N for each head."""
    out = []
    for one, keys, values in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        out.append(F.softmax(one @ keys.T / one.shape[-1] ** 0.5, dim=-1) @ values)
    return torch.cat(out, dim=-1)


def feed_forward(x: Tensor, p: Leaves) -> Tensor:
    return F.gelu(F.layer_norm(x, x.shape[-1:], p["ff_weight"], p["ff_bias"]) @ p["w1"].T) @ p["w2"].T


def block_params(p: Leaves, asking: str) -> jk.GatedFusionParams:
    """No biases but the norms'; f comes as it is."""
    return jk.GatedFusionParams(
        p[f"{asking}_weight"], p[f"{asking}_bias"], None, None,
        p["wq"], None, p["wk"], None, p["wv"], None, p["wo"], None,
        p["ff_weight"], p["ff_bias"], p["w1"], None, p["w2"], None, p.get("alpha"), p.get("beta"),
    )  # fmt: skip


# PerceiverResampler


class Resampler(NamedTuple):
    width: int
    heads: int
    d: int
    latents: int
    depth: int
    images: int
    tokens: int


RESAMPLERS = {
    "OpenFlamingo / 16": Resampler(64, 8, 4, 4, 3, 3, 20),
    "odd": Resampler(13, 3, 5, 7, 2, 2, 11),
    "one token": Resampler(8, 1, 8, 1, 2, 1, 1),
}
each_resampler = pytest.mark.parametrize("shape", RESAMPLERS.values(), ids=RESAMPLERS)


def resampler(s: Resampler) -> tuple[Leaves, list[Leaves]]:
    """All leaves, and the parameters of each layer."""
    d, inner = s.width, s.heads * s.d
    layers = [
        drawn(
            100 * i, x_weight=(d,), x_bias=(d,), z_weight=(d,), z_bias=(d,), wq=(inner, d), wk=(inner, d),
            wv=(inner, d), wo=(d, inner), ff_weight=(d,), ff_bias=(d,), w1=(4 * d, d), w2=(d, 4 * d),
        )
        for i in range(s.depth)
    ]  # fmt: skip
    leaves = {f"layer{i}.{name}": t for i, p in enumerate(layers) for name, t in p.items()}
    leaves |= {"media": normal(s.images, s.tokens, d, seed=9).requires_grad_()}
    leaves |= {"latents": normal(s.latents, d, seed=8).requires_grad_()}
    return leaves, layers


def resampled_by_definition(s: Resampler, leaves: Leaves, layers: list[Leaves]) -> Tensor:
    out = []
    for media in leaves["media"]:
        z = leaves["latents"]
        for p in layers:
            normed = F.layer_norm(media, (s.width,), p["x_weight"], p["x_bias"])
            asked = F.layer_norm(z, (s.width,), p["z_weight"], p["z_bias"])
            keys = torch.cat([normed, asked])
            z = z + attention(asked @ p["wq"].T, keys @ p["wk"].T, keys @ p["wv"].T, s.heads) @ p["wo"].T
            z = z + feed_forward(z, p)
        out.append(z)
    return torch.stack(out)


@methods()
@each_resampler
def test_resampler_on_latent_resample(backend: str, method: str, shape: Resampler) -> None:
    leaves, layers = resampler(shape)

    def ours() -> Tensor:
        z = leaves["latents"]
        for p in layers:
            z = z + jk.fused_latent_resample(
                leaves["media"], z, p["wq"], p["wk"], p["wv"], p["wo"], num_heads=shape.heads,
                x_norm=(p["x_weight"], p["x_bias"]), latents_norm=(p["z_weight"], p["z_bias"]),
                attend_latents=True, backend=backend, method=method,
            )  # fmt: skip
            z = z + feed_forward(z, p)
        return z

    assert_held(ours, lambda: resampled_by_definition(shape, leaves, layers), leaves)


@backends("fused_gated_fusion")
@each_resampler
def test_resampler_on_gated_fusion(backend: str, shape: Resampler) -> None:
    """A layer is the block without gates, whose f are the normalised keys."""
    leaves, layers = resampler(shape)

    def ours() -> Tensor:
        z = leaves["latents"].expand(shape.images, -1, -1)
        for p in layers:
            keys = [
                F.layer_norm(x, (shape.width,), p[f"{name}_weight"], p[f"{name}_bias"])
                for x, name in ((leaves["media"], "x"), (z, "z"))
            ]
            params = block_params(p, "z")
            z = jk.fused_gated_fusion(
                z, torch.cat(keys, dim=1), params, num_heads=shape.heads, form="flamingo", backend=backend
            )
        return z

    assert_held(ours, lambda: resampled_by_definition(shape, leaves, layers), leaves)


# Gated cross-attention: a text token attends the tokens of the latest image before it, and no others.


class Block(NamedTuple):
    width: int
    media_width: int
    heads: int
    d: int
    tokens: int  # of an image
    images: int
    places: tuple[tuple[int, ...], ...]  # in each text, where images stand
    length: int


BLOCKS = {
    "text before any image": Block(24, 16, 4, 6, 5, 3, ((2, 5, 9), (0, 4, 11)), 12),
    "a text without images": Block(15, 7, 3, 5, 4, 2, ((), (3, 4)), 6),
    "one image": Block(8, 12, 1, 8, 1, 1, ((0,), (2,), (4,)), 5),
}


def block(s: Block, gates: int, seed: int = 0) -> Leaves:
    d, inner = s.width, s.heads * s.d
    return drawn(
        seed, t_weight=(d,), t_bias=(d,), wq=(inner, d), wk=(inner, s.media_width), wv=(inner, s.media_width),
        wo=(d, inner), ff_weight=(d,), ff_bias=(d,), w1=(4 * d, d), w2=(d, 4 * d), alpha=(gates,),
        beta=(gates,),
    )  # fmt: skip


def block_by_definition(s: Block, text: Tensor, media: Tensor, p: Leaves) -> Tensor:
    """media [B, images, tokens, D_kv]; one text token at a time."""
    out = []
    for places, t, images in zip(s.places, text, media, strict=True):
        q = F.layer_norm(t, (s.width,), p["t_weight"], p["t_bias"]) @ p["wq"].T
        rows = []
        for position in range(s.length):
            seen = sum(place <= position for place in places)
            if seen == 0:
                rows.append(torch.zeros_like(q[position]))
                continue
            image = images[seen - 1]
            rows.append(
                attention(q[position : position + 1], image @ p["wk"].T, image @ p["wv"].T, s.heads)[0]
            )
        t = t + p["alpha"].tanh() * (torch.stack(rows) @ p["wo"].T)
        out.append(t + p["beta"].tanh() * feed_forward(t, p))
    return torch.stack(out)


def media_range(s: Block) -> Tensor:
    """kv_range of the media mask: the image last begun, whose number 0 is none: [-tokens, 0)."""
    begun = torch.zeros(len(s.places), s.length, dtype=torch.int64)
    for sample, places in enumerate(s.places):
        begun[sample, list(places)] = 1
    latest = begun.cumsum(1)
    return torch.stack([(latest - 1) * s.tokens, latest * s.tokens], dim=-1)


@backends("fused_gated_fusion")
@pytest.mark.parametrize("shape", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar gates", "gates per channel"])
@pytest.mark.parametrize("depth", [1, 2])
def test_gated_block_with_media_mask(backend: str, shape: Block, per_channel: bool, depth: int) -> None:
    blocks = [block(shape, shape.width if per_channel else 1, seed=50 * i) for i in range(depth)]
    b = len(shape.places)
    leaves = {f"block{i}.{name}": t for i, p in enumerate(blocks) for name, t in p.items()}
    leaves["text"] = normal(b, shape.length, shape.width, seed=3).requires_grad_()
    leaves["media"] = normal(b, shape.images, shape.tokens, shape.media_width, seed=4).requires_grad_()

    def ours() -> Tensor:
        t = leaves["text"]
        for p in blocks:
            params = block_params(p, "t")
            t = jk.fused_gated_fusion(
                t, leaves["media"].flatten(1, 2), params, num_heads=shape.heads, form="flamingo",
                kv_range=media_range(shape), backend=backend,
            )  # fmt: skip
        return t

    def theirs() -> Tensor:
        t = leaves["text"]
        for p in blocks:
            t = block_by_definition(shape, t, leaves["media"], p)
        return t

    assert_held(ours, theirs, leaves)


@backends("fused_gated_fusion")
def test_text_before_any_image_passes_with_its_mlp_alone(backend: str) -> None:
    shape = BLOCKS["text before any image"]
    p, text = block(shape, 1), normal(2, shape.length, shape.width)
    media = normal(2, shape.images * shape.tokens, shape.media_width)
    y = jk.fused_gated_fusion(
        text, media, block_params(p, "t"), num_heads=shape.heads, form="flamingo",
        kv_range=media_range(shape), backend=backend,
    )  # fmt: skip
    first = text[0, : shape.places[0][0]]
    want = first + p["beta"].tanh() * feed_forward(first, p)
    assert float((y[0, : len(first)] - want).detach().abs().max()) < 1e-12
