"""fused_latent_resample and fused_cross_attention against the cross-attention of BLIP-2's Q-Former."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from held import (
    additive,
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


class Shape(NamedTuple):
    b: int
    queries: int
    n: int
    width: int
    image_width: int
    heads: int


SHAPES = {
    "BLIP-2 / 16": Shape(2, 8, 33, 48, 88, 12),  # 768 <- 1408
    "odd": Shape(3, 5, 7, 15, 11, 3),
    "one": Shape(1, 1, 1, 8, 4, 1),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_padding = pytest.mark.parametrize("padding", [False, True], ids=["full", "padded"])


def qformer(s: Shape) -> nn.Module:
    code = model_code(
        "transformers.models.blip_2.modeling_blip_2", "Blip2QFormerAttention", "Blip2QFormerConfig"
    )
    config = code.Blip2QFormerConfig(
        hidden_size=s.width,
        num_attention_heads=s.heads,
        encoder_hidden_size=s.image_width,
        attn_implementation="eager",
    )
    return randomised(code.Blip2QFormerAttention(config, is_cross_attention=True))


def by_resample(
    module: nn.Module, hidden: Tensor, image: Tensor, keep: Tensor | None, s: Shape, **options: Any
) -> Tensor:
    q, k, v, out = linears(module)
    return jk.fused_latent_resample(
        image, hidden, q.weight, k.weight, v.weight, out.weight, num_heads=s.heads,
        bq=q.bias, bk=k.bias, bv=v.bias, bo=out.bias, mask=keep, **options,
    )  # fmt: skip


def by_attention(
    module: nn.Module, hidden: Tensor, image: Tensor, keep: Tensor | None, s: Shape, **options: Any
) -> Tensor:
    q, k, v, out = linears(module)
    split = (t.unflatten(-1, (s.heads, -1)).transpose(1, 2) for t in (q(hidden), k(image), v(image)))
    return out(jk.fused_cross_attention(*split, mask=keep, **options).transpose(1, 2).flatten(2))


def assert_replaced(attention: Any, s: Shape, padding: bool, **options: Any) -> None:
    module = qformer(s)
    keep = padded([max(1, s.n - 2 * i) for i in range(s.b)], s.n) if padding else None
    hidden, image = normal(s.b, s.queries, s.width), normal(s.b, s.n, s.image_width, seed=1)

    def ours() -> Tensor:
        return module.output.LayerNorm(hidden + attention(module, hidden, image, keep, s, **options))

    def theirs() -> Tensor:
        y = module(
            hidden,
            encoder_hidden_states=image,
            encoder_attention_mask=None if keep is None else additive(keep),
        )
        return y[0] if isinstance(y, tuple) else y

    with wide_softmax():
        assert_held(ours, theirs, leaves(module, hidden=hidden, image=image))


@methods()
@each_shape
@each_padding
def test_latent_resample(backend: str, method: str, shape: Shape, padding: bool) -> None:
    assert_replaced(by_resample, shape, padding, backend=backend, method=method)


@backends("fused_cross_attention")
@each_shape
@each_padding
def test_cross_attention(backend: str, shape: Shape, padding: bool) -> None:
    assert_replaced(by_attention, shape, padding, backend=backend)
