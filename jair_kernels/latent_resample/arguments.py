"""The arguments of a layer, and what both of its forms make of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from jair_kernels import _blocks
from jair_kernels._autograd import cast
from jair_kernels._blocks import Norm
from jair_kernels._plain import zero_masked
from jair_kernels.latent_resample import cost

Tensor = torch.Tensor
Optional = Tensor | None


class Tensors(NamedTuple):
    """What gradients flow to, in the order of the autograd function's arguments."""

    x: Tensor
    latents: Tensor
    wq: Tensor
    bq: Optional
    wk: Tensor
    bk: Optional
    wv: Tensor
    bv: Optional
    wo: Tensor
    bo: Optional
    x_weight: Optional
    x_bias: Optional
    latents_weight: Optional
    latents_bias: Optional


class Options(NamedTuple):
    """The rest of them."""

    num_heads: int
    kv_heads: int
    attend_latents: bool
    eps: float
    dtype: torch.dtype
    backend: str


def keys_of(normed: Tensor, latents: Tensor, b: int, n: int, o: Options) -> Tensor:
    """Keys [B,keys,D_kv]: a sample's tokens, then its latents where these are attended."""
    tokens: Tensor = normed.unflatten(0, (b, n))
    if not o.attend_latents:
        return tokens
    appended = latents if latents.dim() == 3 else latents.unsqueeze(0)
    return torch.cat([tokens, appended.expand(b, *appended.shape[1:])], dim=1)


def extended(mask: Optional, t: Tensors, o: Options) -> Optional:
    """The mask over all keys: latents are always kept."""
    if mask is None or not o.attend_latents:
        return mask
    return torch.nn.functional.pad(mask, (0, t.latents.shape[-2]), value=True)


def samples(t: Tensors) -> int:
    """How many sets of latents there are: one that is shared, or one for each sample."""
    return 1 if t.latents.dim() == 2 else t.latents.shape[0]


def norms(t: Tensors, o: Options) -> tuple[Norm, Norm]:
    return Norm(t.x_weight, t.x_bias, o.eps), Norm(t.latents_weight, t.latents_bias, o.eps)


def latent_rows(t: Tensors, o: Options, stats: Optional = None) -> tuple[Tensor, Tensor, Tensor]:
    """Latents in the dtype of the products, their normalised rows and statistics (only with `stats` None)."""
    latents = cast(t.latents, o.dtype).contiguous()
    if stats is not None:
        return latents, latents, stats
    return latents, *_blocks.norm(o.backend, latents.flatten(0, -2), norms(t, o)[1])


def token_rows(
    t: Tensors, mask: Optional, o: Options, stats: Optional = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the tokens, masked ones 0, likewise."""
    rows = zero_masked(cast(t.x, o.dtype), mask).flatten(0, 1)
    if stats is not None:
        return rows, rows, stats
    return rows, *_blocks.norm(o.backend, rows, norms(t, o)[0])


def sum_if(grad: Tensor, shared: bool) -> Tensor:
    """[B,...] summed over the batch in float32, in the dtype it came in."""
    return (
        grad.sum(0, dtype=torch.float32 if grad.dtype != torch.float64 else None).to(grad.dtype)
        if shared
        else grad
    )


def sizes(t: Tensors, o: Options) -> cost.Sizes:
    """The numbers that costs depend on."""
    (b, n, kv_width), l = t.x.shape, t.latents.shape[-2]
    keys = n + l if o.attend_latents else n
    d = t.wq.shape[0] // o.num_heads
    shared = t.latents.dim() == 2
    return cost.Sizes(b, n, keys, l, shared, t.latents.shape[-1], kv_width, o.num_heads, o.kv_heads, d)
