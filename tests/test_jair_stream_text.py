"""Stream "text": the keys and values of all blocks, made in one product."""

from __future__ import annotations

import torch
from test_jair_fusion import D, H, M, assert_close, randn, scrambled

import jair
from jair.fusion import keys_and_values


def test_keys_and_values_of_stream_text_are_differentiated_in_every_way() -> None:
    """Twice, by torch.func, and forward."""
    blocks = [scrambled(jair.GatedFusion(D, H, M)) for _ in range(2)]
    parts = [p for block in blocks for p in (block.norm_f.weight, block.k.weight, block.v.weight)]
    f, dy = randn(2, 5, D), randn(2, 5, 4 * D).detach()

    def made(f: torch.Tensor) -> torch.Tensor:
        return torch.cat(keys_and_values(blocks, f), dim=-1)

    def plainly(f: torch.Tensor) -> torch.Tensor:
        norms = ((block, torch.nn.functional.layer_norm(f, (D,), *affine(block))) for block in blocks)
        return torch.cat([layer(x) for block, x in norms for layer in (block.k, block.v)], dim=-1)

    def affine(block: jair.GatedFusion) -> tuple[torch.Tensor, torch.Tensor, float]:
        return block.norm_f.weight, block.norm_f.bias, block.eps

    found = []
    for function in (made, plainly):
        first = torch.autograd.grad(function(f), [f, *parts], dy, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [f, *parts])
        reverse = torch.func.vjp(function, f.detach())[1](dy)
        forward = torch.func.jvp(function, (f.detach(),), (f.detach().flip(1),))
        each = torch.func.vmap(function)(f.detach().unsqueeze(1))
        found.append([*first, *second, *reverse, *forward, each])
    for have, want in zip(*found, strict=True):
        assert_close(have, want)
