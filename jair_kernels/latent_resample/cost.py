"""Exact operation counts of fused_latent_resample, and the choice of a form by them.

A multiply-accumulate counts as 2 FLOPs.
"""

from __future__ import annotations

from typing import NamedTuple

METHODS = ("auto", "projected", "absorbed")


class Sizes(NamedTuple):
    """Of one call: B, N tokens without and `keys` with appended latents, L latents, shared or per sample."""

    b: int
    n: int
    keys: int
    l: int
    shared: bool
    width: int  # D
    kv_width: int  # D_kv
    h: int
    h_kv: int
    d: int


def _ends(s: Sizes) -> int:
    """Queries from latents and the output projection, which both forms have."""
    return 2 * s.l * s.h * s.d * s.width * ((1 if s.shared else s.b) + s.b)


def projected_flops(s: Sizes) -> int:
    """K and V of every key, two products of the attention."""
    keys = 2 * s.b * s.keys * s.kv_width * s.h_kv * s.d
    return 2 * (keys + 2 * s.b * s.l * s.keys * s.h * s.d) + _ends(s)


def absorbed_flops(s: Sizes) -> int:
    """Scores and pooling over raw keys; wk into the queries, once if shared, and wv behind the pooling."""
    pooling = 2 * s.b * s.l * s.keys * s.h * s.kv_width
    small = s.l * s.h * s.d * s.kv_width * ((1 if s.shared else s.b) + s.b)
    return 2 * (pooling + small) + _ends(s)


def choose(method: str, s: Sizes) -> str:
    """What "auto" stands for: the form with fewer operations a sample, the queries of shared latents being
    made once for a batch of any size; so a sample's result does not depend on its batch.
    """
    if method != "auto":
        return method
    projected = 2 * s.keys * s.h_kv * s.d * s.kv_width + 2 * s.l * s.keys * s.h * s.d
    small = s.l * s.h * s.d * s.kv_width * (1 if s.shared else 2)
    absorbed = 2 * s.l * s.keys * s.h * s.kv_width + small
    return "absorbed" if absorbed < projected else "projected"
