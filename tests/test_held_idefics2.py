"""fused_latent_resample and fused_cross_attention against Idefics2's perceiver resampler of transformers."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from held import (
    assert_held,
    backends,
    leaves,
    linears,
    methods,
    model_code,
    normal,
    padded,
    randomised,
    wide_softmax,
)
from torch import nn

import jair_kernels as jk

Tensor = torch.Tensor
CODE = "transformers.models.idefics2.modeling_idefics2"


class Shape(NamedTuple):
    width: int
    latents: int
    heads: int
    kv_heads: int
    d: int
    depth: int
    lengths: tuple[int, ...]
    n: int


SHAPES = {
    "idefics2-8b / 16": Shape(64, 8, 16, 4, 6, 3, (31, 5), 31),  # 16 query heads on 4
    "all heads": Shape(24, 3, 3, 3, 8, 2, (7, 1, 0), 7),  # a sample of padding alone attends its latents
    "one key head": Shape(20, 5, 4, 1, 5, 1, (1,), 1),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def resampler(s: Shape) -> nn.Module:
    """Random weights and latents, eager attention; RMSNorm is torch's, which stays in float64."""
    code = model_code(CODE, "Idefics2PerceiverResampler", "Idefics2PerceiverConfig")
    config = code.Idefics2PerceiverConfig(
        hidden_size=s.width,
        resampler_n_latents=s.latents,
        resampler_depth=s.depth,
        resampler_n_heads=s.heads,
        resampler_head_dim=s.d,
        num_key_value_heads=s.kv_heads,
        attn_implementation="eager",
    )
    model = randomised(code.Idefics2PerceiverResampler(config))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Idefics2RMSNorm":
                norm = nn.RMSNorm(s.width, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


def by_resample(layer: Any, x: Tensor, latents: Tensor, keep: Tensor, s: Shape, **options: Any) -> Tensor:
    wq, wk, wv, wo = (m.weight for m in linears(layer.self_attn))
    return jk.fused_latent_resample(
        x, latents, wq, wk, wv, wo, num_heads=s.heads, num_kv_heads=s.kv_heads, attend_latents=True,
        mask=keep, **options,
    )  # fmt: skip


def by_attention(layer: Any, x: Tensor, latents: Tensor, keep: Tensor, s: Shape, **options: Any) -> Tensor:
    wq, wk, wv, wo = (m.weight for m in linears(layer.self_attn))
    latents = latents.expand(x.shape[0], -1, -1)
    keys = torch.cat([x, latents], dim=1)
    q = (latents @ wq.mT).unflatten(-1, (s.heads, s.d)).transpose(1, 2)
    k, v = ((keys @ w.mT).unflatten(-1, (s.kv_heads, s.d)).transpose(1, 2) for w in (wk, wv))
    mask = F.pad(keep, (0, s.latents), value=True)
    return jk.fused_cross_attention(q, k, v, mask=mask, **options).transpose(1, 2).flatten(2) @ wo.mT


def composed(attention: Any, model: Any, x: Tensor, keep: Tensor, s: Shape, **options: Any) -> Tensor:
    """The whole resampler on one of the two; latents are shared [L,D] until the first layer's output."""
    latents = model.latents
    for layer in model.layers:
        context, asked = layer.input_context_norm(x), layer.input_latents_norm(latents)
        latents = latents + attention(layer, context, asked, keep, s, **options)
        latents = latents + layer.mlp(layer.post_attention_layernorm(latents))
    return model.norm(latents)


def assert_replaced(attention: Any, s: Shape, **options: Any) -> None:
    model, keep = resampler(s), padded(s.lengths, s.n)
    x = normal(len(s.lengths), s.n, s.width)
    with wide_softmax():
        assert_held(
            lambda: composed(attention, model, x, keep, s, **options),
            lambda: model(x, attention_mask=keep.long()).as_subclass(Tensor),
            leaves(model, x=x),
        )


@methods()
@each_shape
def test_latent_resample(backend: str, method: str, shape: Shape) -> None:
    assert_replaced(by_resample, shape, backend=backend, method=method)


@backends("fused_cross_attention")
@each_shape
def test_cross_attention(backend: str, shape: Shape) -> None:
    assert_replaced(by_attention, shape, backend=backend)


def test_the_comparison_in_float64_is_of_their_own_code() -> None:
    """As published, with RMSNorm and softmax in float32, the module says the same to float32's rounding."""
    shape = SHAPES["idefics2-8b / 16"]
    model, keep = resampler(shape), padded(shape.lengths, shape.n)
    code = model_code(CODE, "Idefics2PerceiverResampler")
    published = code.Idefics2PerceiverResampler(model.config).eval()
    published.load_state_dict(model.state_dict())
    x = normal(2, shape.n, shape.width)
    with torch.no_grad():
        got = composed(by_resample, model, x, keep, shape, backend="reference")
        want = published(x.float(), attention_mask=keep.long())
    assert float((got - want).norm() / got.norm()) < 1e-5
