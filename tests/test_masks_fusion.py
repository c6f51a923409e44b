"""Masks of the fusion ops, empty batches and gates at 0: what is masked has no effect, in value or gradient,
whatever it holds; where nothing is left attention is zero, and what stands around it stays.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from masked_fusion import (
    ATTENDED,
    ATTENTION,
    BF16,
    CALLS,
    F32,
    F64,
    GATED,
    LAYER,
    LIMITS,
    MASK,
    RANGED,
    RESAMPLE,
    B,
    L,
    N,
    Sum,
    assert_close,
    assert_same,
    at,
    batched,
    changed,
    keys_of,
    make,
    on_backends,
    op_of,
    piece,
    results,
    spoilt,
)

from jair_kernels.testing import FLOAT64_FLOOR, Sample

Tensor = torch.Tensor
ALONE = tuple(name for name in CALLS if name not in ATTENDED)


@on_backends(CALLS, F64, F32, BF16)
def test_content_of_masked_tokens_is_ignored(name: str, backend: str, dtype: torch.dtype) -> None:
    clean = make(name, dtype)
    want = results(clean, backend, mask=MASK)
    assert all(value.isfinite().all() for value in want.values())
    got = results(spoilt(clean, ~MASK), backend, mask=MASK)
    assert_same(got, want)
    for key in keys_of(clean):
        assert not at(got[f"d{key}"], ~MASK).any()
        assert at(got[f"d{key}"], MASK).any(-1).all()


@on_backends(CALLS, F32)
@pytest.mark.parametrize("layout", ["broadcast", "strided", "transposed"])
def test_strides_of_the_mask(name: str, backend: str, dtype: torch.dtype, layout: str) -> None:
    mask = {
        "broadcast": MASK[1:2].expand(B, N),
        "strided": torch.stack([MASK, ~MASK], dim=-1).flatten(1)[:, ::2],
        "transposed": MASK.t().contiguous().t(),
    }[layout]
    assert not mask.is_contiguous()
    sample = make(name, dtype)
    assert_same(results(sample, backend, mask=mask), results(sample, backend, mask=mask.contiguous()))


@on_backends(CALLS, F64, F32)
def test_mask_equals_truncating(name: str, backend: str, dtype: torch.dtype) -> None:
    lengths, sample = (7, 4, 1), make(name, dtype)
    keep = torch.arange(N) < torch.tensor(lengths).unsqueeze(1)
    self_attention = op_of(name) == LAYER
    if self_attention:  # the output of a masked token means nothing
        sample = changed(sample, sample.dy * keep.unsqueeze(-1))
    want = Sum(sample)
    for b, length in enumerate(lengths):
        keys = slice(0, length)
        queries = keys if self_attention else slice(None)
        want.add(results(piece(sample, b, keys, queries), backend), b, keys, queries)
    got = results(sample, backend, mask=keep)
    if self_attention:
        got["y"] = got["y"] * keep.unsqueeze(-1)
    for what, value in want.total.items():
        assert_close(got[what], value, LIMITS[dtype], what)


def nothing_attended(sample: Sample) -> Tensor:
    """The output by definition where attention is zero."""
    t = {n: v.double() for n, v in sample.tensors.items()}
    op = sample.op[6:]
    if op == ATTENTION:
        return torch.zeros_like(t["q"])
    if op == RESAMPLE:
        return t["bo"].expand(B, L, -1)

    def norm(x: Tensor, which: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], t[f"{which}_weight"], t[f"{which}_bias"])

    def mlp(x: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, t["w1"], t["b1"])), t["w2"], t["b2"])

    if op == LAYER:
        z = t["bo"].expand_as(t["x"])
        return z + mlp(norm(z, "norm2"))
    z = norm(t["t"], "norm_t") if sample.options["form"] == "jair" else t["t"]
    z = z + t["alpha"].tanh() * t["bo"]
    return z + t["beta"].tanh() * mlp(z if sample.options["form"] == "jair" else norm(z, "norm_mlp"))


# What only the attention sees.
UNSEEN = {"k", "v", "q", "x", "f", "wq", "bq", "wk", "bk", "wv", "bv", "wo", "wqkv", "bqkv", "norm1_weight"}
UNSEEN |= {"latents", "norm_f_weight", "norm_f_bias", "norm1_bias", "x_norm_weight", "latents_norm_bias"}
NOTHING = torch.zeros(B, N, dtype=torch.bool)


@on_backends(ALONE, F64, F32, BF16)
def test_nothing_to_attend(name: str, backend: str, dtype: torch.dtype) -> None:
    sample = make(name, dtype)
    got = results(sample, backend, mask=NOTHING)
    assert_close(got["y"], nothing_attended(sample), LIMITS[dtype])
    for n in sample.tensors:
        assert got[f"d{n}"].isfinite().all()
        if n in UNSEEN:
            assert not got[f"d{n}"].any(), n


@on_backends(ATTENDED, F64, F32, BF16)
def test_latents_are_left_where_no_token_is_kept(name: str, backend: str, dtype: torch.dtype) -> None:
    sample = make(name, dtype)
    got = results(sample, backend, mask=NOTHING)
    for b in range(B):
        alone = results(piece(sample, b, slice(0, 1)), backend, mask=NOTHING[:1, :1])
        assert_close(got["y"][b : b + 1], alone["y"], LIMITS[dtype])
    assert got["y"].any(-1).all()
    assert got["dlatents"].any(-1).all()
    assert not any(got[f"d{n}"].any() for n in ("x", "x_norm_weight", "x_norm_bias"))


@on_backends(CALLS, F64, F32, BF16)
def test_empty_batch(name: str, backend: str, dtype: torch.dtype) -> None:
    sample = make(name, dtype, b=0)
    masks: list[dict[str, Tensor]] = [{}, {"mask": torch.zeros(0, N, dtype=torch.bool)}]
    masks += [{"kv_range": torch.zeros(0, L, 2, dtype=torch.int32)}] if name in RANGED else []
    for mask in masks:
        got = results(sample, backend, **mask)
        assert got["y"].shape == sample.dy.shape
        for n, t in sample.tensors.items():
            assert got[f"d{n}"].shape == t.shape, n
            assert (n in batched(sample)) == (0 in t.shape), n
            assert not got[f"d{n}"].any(), n


@on_backends((f"{GATED}-flamingo", f"{GATED}-jair"), F64, F32, BF16)
@pytest.mark.parametrize("sizes", [(1, 1), (16, 16), (1, 16)], ids=["scalar", "per channel", "mixed"])
@pytest.mark.parametrize("masked", [False, True], ids=["all kept", "masked"])
def test_gates_at_zero(
    name: str, backend: str, dtype: torch.dtype, sizes: tuple[int, int], masked: bool
) -> None:
    """The block is its residual, what lies behind a gate has no gradient, and the gates have their own."""
    gates = dict(zip(("alpha", "beta"), (torch.zeros(size, dtype=dtype) for size in sizes), strict=True))
    sample = changed(make(name, dtype), **gates, **({"mask": MASK} if masked else {}))
    got, eager = results(sample, backend), results(sample, "reference")
    want = results(sample.to(F64), "reference")
    if sample.options["form"] == "flamingo":
        assert torch.equal(got["y"], sample.tensors["t"])
        assert torch.equal(got["dt"], sample.dy)
    else:
        t, weight, bias = (sample.tensors[n].double() for n in ("t", "norm_t_weight", "norm_t_bias"))
        assert_close(want["y"], F.layer_norm(t, t.shape[-1:], weight, bias), LIMITS[F64])
    for n, value in want.items():
        if not value.any():
            assert not got[n].any(), n
            continue
        floor = (FLOAT64_FLOOR if dtype == F64 else 4 * torch.finfo(dtype).eps) * float(value.norm())
        error, theirs = (float((r[n].double() - value).norm()) for r in (got, eager))
        assert error <= 2 * theirs + floor, f"{n}: error {error:.2e}, PyTorch's own {theirs:.2e}"
    assert want["dalpha"].all()
    assert want["dbeta"].all()
    assert not want["dwo"].any()
