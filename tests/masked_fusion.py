"""One small call of every form of the fusion ops, and ways to change, to spoil and to cut it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import jair_kernels as jk
from jair_kernels._fusion_samples import PROJECTING
from jair_kernels.testing import FusionCase, Sample, run

Tensor = torch.Tensor
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
LIMITS = {F64: 1e-11, F32: 1e-5, BF16: 2e-2}
B, L, N = 3, 5, 7
ATTENTION, RESAMPLE, GATED, LAYER = "cross_attention", "latent_resample", "gated_fusion", "transformer_layer"
KEYS = {ATTENTION: ("k", "v"), RESAMPLE: ("x",), GATED: ("f",), LAYER: ("x",)}
QUERIES = {ATTENTION: "q", GATED: "t", LAYER: "x"}

_RESAMPLERS = ("projected-shared", "projected-own", "absorbed-shared", "absorbed-own")
# The op, then what is special: the method and whose latents, the form and whether f holds keys, causal.
CALLS = (
    ATTENTION,
    *(f"{RESAMPLE}-{of}" for of in _RESAMPLERS),
    *(f"{RESAMPLE}-{of}-attended" for of in _RESAMPLERS),
    f"{GATED}-flamingo",
    f"{GATED}-jair",
    f"{GATED}-jair-given",
    LAYER,
    f"{LAYER}-causal",
)
ATTENDED = tuple(name for name in CALLS if name.endswith("attended"))
RANGED = (ATTENTION, f"{GATED}-flamingo", f"{GATED}-jair", f"{GATED}-jair-given")
MASK = torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)


def op_of(name: str) -> str:
    return name.split("-")[0]


def on_backends(names: Sequence[str], *dtypes: torch.dtype) -> Any:
    """Parametrises `name, backend, dtype` over backends of CPU tensors; a skip says why one is missing."""
    out = []
    for name in names:
        for backend in ("reference", "cpu"):
            if backend == "reference" and "absorbed" in name:
                continue  # its definition is the projected form
            reason = jk.why_not(f"fused_{op_of(name)}", backend)
            marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
            for dtype in dtypes:
                label = f"{name}-{backend}-{str(dtype)[6:]}"
                out.append(pytest.param(name, backend, dtype, marks=marks, id=label))
    return pytest.mark.parametrize(("name", "backend", "dtype"), out)


def make(name: str, dtype: torch.dtype = F64, b: int = B, **special: Any) -> Sample:
    """One of CALLS: 4 heads of width 4 on 2 of keys, D = 16, D_kv = 12 where it may differ."""
    op, *words = name.split("-")
    options: dict[str, Any] = {"form": words[0]} if op == GATED else {}
    options |= {"causal": True} if "causal" in words else {}
    if op == RESAMPLE:
        options |= {"method": words[0], "attend_latents": "attended" in words}
    if op != LAYER:
        special |= {"h_kv": 2, "kv_width": 12 if op != ATTENTION and "attended" not in words else None}
    if "given" in words:
        special |= {"kv_width": 16, "absent": PROJECTING}
    case = FusionCase(f"fused_{op}", b, L, N, 4, 4, shared="own" not in words, options=options, **special)
    sample = case.sample(dtype)
    return replace(sample, tensors={name: t for name, t in sample.tensors.items() if t is not None})


def changed(sample: Sample, dy: Tensor | None = None, **changes: Any) -> Sample:
    """With other tensors, a mask, ranges, another gradient of y, or other options."""
    tensors = {n: t for n, t in changes.items() if isinstance(t, Tensor)}
    options = {n: t for n, t in changes.items() if n not in tensors}
    dy = sample.dy if dy is None else dy
    return replace(sample, tensors=sample.tensors | tensors, options=sample.options | options, dy=dy)


def results(sample: Sample, backend: str, dy: Tensor | None = None, **changes: Any) -> dict[str, Tensor]:
    """The output "y" and the gradient "d<name>" of every tensor."""
    return run(changed(sample, dy, **changes), backend)


def keys_of(sample: Sample) -> tuple[str, ...]:
    return KEYS[sample.op[6:]]


def at(t: Tensor, tokens: Tensor) -> Tensor:
    """The rows of t [B,N,D] or [B,h,N,d] at the true places of `tokens` [B,N]."""
    return (t.transpose(1, 2) if t.ndim == 4 else t)[tokens]


def filled(t: Tensor, tokens: Tensor, values: Sequence[float]) -> Tensor:
    """Those rows overwritten with these values in turn."""
    t = t.clone()
    rows = t.transpose(1, 2) if t.ndim == 4 else t
    count = rows[tokens].numel()
    junk = torch.tensor(values, dtype=t.dtype).repeat(count // len(values) + 1)[:count]
    rows[tokens] = junk.view_as(rows[tokens])
    return t


def spoilt(sample: Sample, tokens: Tensor) -> Sample:
    """With these tokens [B,N] of its keys unusable."""
    junk = (float("nan"), 3e38, float("-inf"))
    return changed(sample, **{n: filled(sample.tensors[n], tokens, junk) for n in keys_of(sample)})


def batched(sample: Sample) -> set[str]:
    """Tensors with a batch axis; the others are parameters, whose gradients are summed over it."""
    own = sample.op[6:] == RESAMPLE and sample.tensors["latents"].ndim == 3
    return {n for n in sample.tensors if n in {"q", "k", "v", "x", "t", "f"} or (own and n == "latents")}


def places(sample: Sample, keys: slice, queries: slice) -> dict[str, slice]:
    """Which tokens of the batched tensors a piece has."""
    found = dict.fromkeys(batched(sample), slice(None)) | dict.fromkeys(keys_of(sample), keys)
    return found if queries == slice(None) else found | {QUERIES[sample.op[6:]]: queries}


def piece(sample: Sample, b: int, keys: slice, queries: slice = slice(None)) -> Sample:
    """One sample of a batch, some of its keys, some of its queries."""
    where = places(sample, keys, queries)
    cut = {n: sample.tensors[n][b : b + 1, ..., tokens, :] for n, tokens in where.items()}
    return changed(sample, sample.dy[b : b + 1, ..., queries, :], **cut)


class Sum:
    """What the pieces of a call give, put where it belongs."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.total = {f"d{n}": torch.zeros_like(t) for n, t in sample.tensors.items()}
        self.total["y"] = torch.zeros_like(sample.dy)

    def add(self, part: dict[str, Tensor], b: int, keys: slice, queries: slice = slice(None)) -> None:
        where = places(self.sample, keys, queries)
        self.total["y"][b : b + 1, ..., queries, :] += part["y"]
        for n in self.sample.tensors:
            whole = self.total[f"d{n}"]
            (whole[b : b + 1, ..., where[n], :] if n in where else whole).add_(part[f"d{n}"])


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def assert_close(got: Tensor, want: Tensor, limit: float, what: str = "y") -> None:
    """Relative Frobenius distance, with a floor for what is zero but for rounding, as the gradient of bk."""
    assert got.shape == want.shape, what
    error, size = float((got.double() - want.double()).norm()), float(want.double().norm())
    assert error <= limit * (size + 1), f"{what}: error {error:.2e} of {size:.2e}"
