"""kv_range of cross-attention and gated fusion, and causal layers: each query for itself, clamped, and blind
to what lies outside.
"""

from __future__ import annotations

import pytest
import torch
from masked_fusion import (
    BF16,
    F32,
    F64,
    LAYER,
    LIMITS,
    MASK,
    QUERIES,
    RANGED,
    B,
    L,
    N,
    Sum,
    assert_close,
    assert_same,
    at,
    changed,
    filled,
    keys_of,
    make,
    on_backends,
    op_of,
    piece,
    results,
    spoilt,
)

Tensor = torch.Tensor
CAUSAL = (f"{LAYER}-causal",)
# [B,L,2]; reversed and empty ones among them.
RANGES = torch.tensor(
    [
        [[0, 7], [2, 3], [5, 2], [3, 6], [0, 1]],
        [[1, 6], [4, 4], [6, 7], [0, 7], [2, 5]],
        [[0, 0], [1, 4], [0, 7], [6, 1], [5, 7]],
    ]
)


@on_backends(RANGED, F64, F32)
@pytest.mark.parametrize("masked", [False, True], ids=["all kept", "masked"])
def test_range_equals_a_loop_over_queries(name: str, backend: str, dtype: torch.dtype, masked: bool) -> None:
    sample, keep = make(name, dtype), MASK if masked else torch.ones(B, N, dtype=torch.bool)
    want = Sum(sample)
    for b in range(B):
        for l in range(L):
            start, end = RANGES[b, l].tolist()
            keys, query, mask = slice(start, end), slice(l, l + 1), keep[b : b + 1]
            if start >= end:  # all keys, none of them kept
                keys, mask = slice(0, N), torch.zeros_like(mask)
            part = results(piece(sample, b, keys, query), backend, mask=mask[:, keys])
            want.add(part, b, keys, query)
    got = results(sample, backend, kv_range=RANGES, **({"mask": keep} if masked else {}))
    for what, value in want.total.items():
        assert_close(got[what], value, LIMITS[dtype], what)


@on_backends(CAUSAL, F64, F32)
@pytest.mark.parametrize("masked", [False, True], ids=["all kept", "masked"])
def test_causal_equals_a_loop_over_prefixes(
    name: str, backend: str, dtype: torch.dtype, masked: bool
) -> None:
    sample = make(name, dtype)
    keep = MASK if masked else torch.ones(B, N, dtype=torch.bool)
    want = Sum(sample)
    for b in range(B):
        for n in range(N):
            prefix = slice(0, n + 1)
            last = torch.zeros_like(sample.dy[b : b + 1, prefix])
            last[:, n] = sample.dy[b, n]
            one = piece(sample, b, prefix)
            part = results(one, backend, last, mask=keep[b : b + 1, prefix], causal=False)
            part["y"] = part["y"] * (torch.arange(n + 1) == n).unsqueeze(-1)
            want.add(part, b, prefix, prefix)
    got = results(sample, backend, **({"mask": keep} if masked else {}))
    for what, value in want.total.items():
        assert_close(got[what], value, LIMITS[dtype], what)


@on_backends(RANGED, F64, F32, BF16)
@pytest.mark.parametrize("integers", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_ranges_out_of_bounds_are_clamped(
    name: str, backend: str, dtype: torch.dtype, integers: torch.dtype
) -> None:
    sample, limit = make(name, dtype), torch.iinfo(integers)
    wild = [[-4, 3], [4, 100], [limit.min, limit.max], [-9, -2], [7, 9]]
    wild += [[limit.max, limit.min], [limit.max, limit.max], [limit.min, 2], [5, limit.max], [-1, 0]]
    wild += [[8, 3], [0, limit.max], [limit.min, limit.min], [6, 7], [3, -1]]
    tame = [[0, 3], [4, 7], [0, 7], [0, 0], [0, 0], [0, 0], [0, 0], [0, 2], [5, 7], [0, 0]]
    tame += [[0, 0], [0, 7], [0, 0], [6, 7], [0, 0]]
    given, meant = torch.tensor(wild, dtype=integers).view(B, L, 2), torch.tensor(tame).view(B, L, 2)
    got = results(sample, backend, kv_range=given)
    assert_same(got, results(sample, backend, kv_range=meant))
    empty = meant[..., 0] == meant[..., 1]
    nothing = results(sample, backend, mask=torch.zeros(B, N, dtype=torch.bool))
    for n in ("y", f"d{QUERIES[op_of(name)]}"):
        assert_close(at(got[n], empty), at(nothing[n], empty), LIMITS[dtype], n)


@on_backends(RANGED, F64, F32, BF16)
def test_layout_and_width_of_ranges_do_not_matter(name: str, backend: str, dtype: torch.dtype) -> None:
    sample = make(name, dtype)
    for ranges in (RANGES, RANGES[:1].expand(B, L, 2), RANGES[:, :1].expand(B, L, 2)):
        want = results(sample, backend, kv_range=ranges.contiguous())
        swapped = ranges.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        for other in (ranges, ranges.int(), swapped, swapped.int()):
            assert_same(results(sample, backend, kv_range=other), want)


# Two queries on the first image, two on the second, one before any; keys 5 and 6 are of no image.
IMAGES = torch.tensor([[0, 3], [0, 3], [3, 5], [3, 5], [0, 0]]).expand(B, L, 2)
KEY, QUERY = torch.arange(N).expand(B, N), torch.arange(L).expand(B, L)


@on_backends(RANGED, F64, F32, BF16)
def test_content_of_keys_out_of_every_range_is_ignored(name: str, backend: str, dtype: torch.dtype) -> None:
    clean, unseen = make(name, dtype), KEY >= 5
    broken = spoilt(clean, unseen)
    want = results(clean, backend, kv_range=IMAGES)
    assert_same(results(broken, backend, kv_range=IMAGES), want)
    assert_same(results(broken, backend, kv_range=IMAGES, mask=~unseen), want)
    for n in keys_of(clean):
        assert not at(want[f"d{n}"], unseen).any(), n


@on_backends(RANGED, F64, F32, BF16)
@pytest.mark.parametrize("junk", ["nan", "inf", "-inf"])
def test_a_broken_key_breaks_the_queries_that_attend_it_alone(
    name: str, backend: str, dtype: torch.dtype, junk: str
) -> None:
    """Key 4 is of the second image, which queries 2 and 3 attend."""
    clean, asking = make(name, dtype), (QUERY == 2) | (QUERY == 3)
    want = results(clean, backend, kv_range=IMAGES)
    for one in keys_of(clean):
        broken = changed(clean, **{one: filled(clean.tensors[one], KEY == 4, [float(junk)])})
        got = results(broken, backend, kv_range=IMAGES)
        assert not at(got["y"], asking).isfinite().any(), one
        for n in ("y", f"d{QUERIES[op_of(name)]}"):
            assert torch.equal(at(got[n], ~asking), at(want[n], ~asking)), (one, n)
        if op_of(name) != "gated_fusion":  # there dy of the attention is NaN, and 0 NaN = NaN
            for n in keys_of(clean):
                assert torch.equal(at(got[f"d{n}"], KEY < 3), at(want[f"d{n}"], KEY < 3)), (one, n)


@on_backends(CAUSAL, F64, F32, BF16)
def test_a_later_token_does_not_break_earlier_ones(name: str, backend: str, dtype: torch.dtype) -> None:
    clean = make(name, dtype)
    want, got = (results(c, backend)["y"] for c in (clean, spoilt(clean, KEY == 4)))
    assert torch.equal(got[:, :4], want[:, :4])
    assert got[:, 4:].isnan().all()
