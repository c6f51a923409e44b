"""Exact operation counts of fused_latent_resample, and the choice of a form by them.

A multiply-accumulate counts as 2 FLOPs.
"""

from __future__ import annotations

from typing import NamedTuple

METHODS = ("auto", "projected", "absorbed")
_MANY = 1 << 40  # keys beside which the rest of a form counts for nothing


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


def projected_bytes(s: Sizes, itemsize: int) -> int:
    """What a sample's form moves on a GPU beside what both do: keys and values written and read."""
    return itemsize * 2 * 2 * s.keys * s.h_kv * s.d


def absorbed_bytes(s: Sizes, itemsize: int) -> int:
    """Likewise: scores in float32 written and read twice, weights and pooled keys written and read."""
    return s.l * s.h * (12 * s.keys + itemsize * 2 * (s.keys + s.kv_width))


def balance(itemsize: int) -> int:
    """Operations that a GPU does while it moves one byte; as measured on an H200, 600 TFLOP/s in 16 bits, 50
    in float32, and 4.2 TB/s.
    """
    return 143 if itemsize < 4 else 12


def choose(method: str, s: Sizes, itemsize: int | None = None, *, any_length: bool = False) -> str:
    """What "auto" stands for: the form with fewer operations a sample, the queries of shared latents being
    made once for a batch of any size; so a sample's result does not depend on its batch. With the `itemsize`
    of the products a GPU is meant, on which the bytes that a form moves count too. `any_length`: one form for
    all numbers of keys, by what a key costs; compiled code would have to be compiled again where they cross.
    """
    if method != "auto":
        return method
    if any_length:
        s = s._replace(keys=_MANY)
    projected = 2 * s.keys * s.h_kv * s.d * s.kv_width + 2 * s.l * s.keys * s.h * s.d
    small = s.l * s.h * s.d * s.kv_width * (1 if s.shared else 2)
    absorbed = 2 * s.l * s.keys * s.h * s.kv_width + small
    if itemsize is not None:
        projected = 2 * projected + balance(itemsize) * projected_bytes(s, itemsize)
        absorbed = 2 * absorbed + balance(itemsize) * absorbed_bytes(s, itemsize)
    return "absorbed" if absorbed < projected else "projected"
