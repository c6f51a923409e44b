"""fused_transformer_layer against ViTLayer of transformers and nn.TransformerEncoderLayer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from held import (
    additive,
    assert_held,
    backends,
    leaves,
    linears,
    model_code,
    normal,
    norms,
    padded,
    randomised,
    takes,
    wide_softmax,
)
from torch import nn

import jair_kernels as jk

on_each = backends("fused_transformer_layer")
SHAPES = {"ViT-B/16 / 8": (2, 50, 96, 12, 384), "odd": (3, 7, 30, 3, 17), "one token": (2, 1, 8, 1, 8)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def vit(d: int, heads: int, hidden: int, **changes: Any) -> nn.Module:
    code = model_code("transformers.models.vit.modeling_vit", "ViTLayer", "ViTConfig")
    config = code.ViTConfig(
        hidden_size=d,
        num_attention_heads=heads,
        intermediate_size=hidden,
        attn_implementation="eager",
        **changes,
    )
    return randomised(code.ViTLayer(config))


def params_of(layer: nn.Module) -> jk.TransformerLayerParams:
    """Of three projections apart, as a ViTLayer has them."""
    q, k, v, out, first, second = linears(layer)
    before, after = norms(layer)
    bias = None if q.bias is None else torch.cat([q.bias, k.bias, v.bias])
    return jk.TransformerLayerParams(
        before.weight, before.bias, torch.cat([q.weight, k.weight, v.weight]), bias, out.weight, out.bias,
        after.weight, after.bias, first.weight, first.bias, second.weight, second.bias,
    )  # fmt: skip


@on_each
@each_shape
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"hidden_act": "gelu_pytorch_tanh"}], ids=str)
def test_vit_layer(backend: str, shape: tuple[int, ...], changes: dict[str, Any]) -> None:
    b, n, d, heads, hidden = shape
    layer, x = vit(d, heads, hidden, layer_norm_eps=1e-6, **changes), normal(b, n, d)
    tanh = "tanh" if "hidden_act" in changes else "none"

    def ours() -> torch.Tensor:
        return jk.fused_transformer_layer(
            x, params_of(layer), num_heads=heads, eps=1e-6, approximate=tanh, backend=backend
        )

    def theirs() -> torch.Tensor:
        y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    with wide_softmax():
        assert_held(ours, theirs, leaves(layer, x=x))


@on_each
def test_vit_layer_with_key_padding(backend: str) -> None:
    layer, keep = vit(48, 4, 96), padded([9, 1, 6], 9)
    takes(layer.forward, "attention_mask")
    x = normal(3, 9, 48)

    def ours() -> torch.Tensor:
        params = params_of(layer)
        return jk.fused_transformer_layer(x, params, num_heads=4, mask=keep, eps=1e-12, backend=backend)

    with wide_softmax():
        assert_held(ours, lambda: layer(x, attention_mask=additive(keep)), leaves(layer, x=x), keep=keep)


@on_each
@each_shape
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("padding", [False, True], ids=["full", "padded"])
def test_torch_encoder_layer(backend: str, shape: tuple[int, ...], causal: bool, padding: bool) -> None:
    b, n, d, heads, hidden = shape
    layer = randomised(
        nn.TransformerEncoderLayer(d, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True)
    )
    attention, x = layer.self_attn, normal(b, n, d)
    keep = padded([max(1, n - 3 * i) for i in range(b)], n) if padding else torch.ones(b, n, dtype=torch.bool)
    later = torch.ones(n, n, dtype=torch.bool).triu(1) if causal else None

    def ours() -> torch.Tensor:
        params = jk.TransformerLayerParams(
            layer.norm1.weight, layer.norm1.bias, attention.in_proj_weight, attention.in_proj_bias,
            attention.out_proj.weight, attention.out_proj.bias, layer.norm2.weight, layer.norm2.bias,
            layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias,
        )  # fmt: skip
        return jk.fused_transformer_layer(
            x, params, num_heads=heads, mask=keep if padding else None, causal=causal, backend=backend
        )

    def theirs() -> torch.Tensor:
        return layer(x, src_mask=later, src_key_padding_mask=~keep if padding else None)

    assert_held(ours, theirs, leaves(layer, x=x), keep=keep)
