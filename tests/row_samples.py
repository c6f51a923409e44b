"""Arguments of the row ops add_norm and gelu, and the bound that every result of theirs is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jair_kernels._autograd import accumulate_dtype
from jair_kernels.testing import FLOAT64_FLOOR, FLOOR_ULPS

Tensor = torch.Tensor
WIDTHS = (1, 7, 48, 768, 1000)
ROWS = (0, 1, 33)
PARAMETERS = ("x_stats", "x_weight", "x_bias", "update", "gate", "weight", "bias")


def rows(r: int, d: int, dtype: torch.dtype, *, mean: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (mean + torch.randn(r, d, generator=generator, dtype=torch.float64)).to(dtype)


def strided(t: Tensor | None) -> Tensor | None:
    """The same rows with a gap behind each; statistics and parameters as they are."""
    if t is None or t.dim() != 2 or t.shape[1] == 2:
        return t
    wide = t.new_full((t.shape[0], t.shape[1] + 5), torch.nan)
    wide[:, : t.shape[1]] = t
    return wide[:, : t.shape[1]]


def statistics(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean and 1/std of rows, in the dtype that kernels keep them in."""
    mean = z.double().mean(1, keepdim=True)
    variance = (z.double() - mean).square().mean(1, keepdim=True)
    return torch.cat([mean, (variance + eps).rsqrt()], 1).to(accumulate_dtype(z.dtype))


def add_norm_arguments(
    r: int, d: int, dtype: torch.dtype, *, without: str = "", gates: int | None = None, norm: bool = True,
    x: Tensor | None = None, parameters: torch.dtype | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Of add_norm_forward; `without` names those that are None, `gates` is the size of the gate."""
    x = rows(r, d, dtype) if x is None else x
    make = {name: rows(1, d, parameters or dtype, seed=i)[0] for i, name in enumerate(PARAMETERS, 1)}
    made: dict[str, Tensor | None] = {**make, "x_stats": statistics(x), "update": rows(r, d, dtype, seed=9)}
    made["gate"] = make["gate"][: d if gates is None else gates]
    made |= dict.fromkeys(without.split())
    *before, weight, bias = (made[name] for name in PARAMETERS)
    return (x, *before, norm, weight, bias, 1e-5)


def add_norm_grad_arguments(
    z: Tensor, *, without: str = "", parameters: torch.dtype | None = None
) -> tuple[Tensor | None, ...]:
    """Of add_norm_backward."""
    r, d = z.shape
    weight, bias = (rows(1, d, parameters or z.dtype, seed=i)[0] for i in (7, 8))
    made = {"dy": rows(r, d, z.dtype, seed=10), "dz": rows(r, d, z.dtype, seed=11), "z": z}
    made |= {"stats": statistics(z), "weight": weight, "bias": bias}
    return tuple(None if name in without.split() else t for name, t in made.items())


def gelu_arguments(r: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """dg and h of gelu_backward; the forward takes the second."""
    return rows(r, m, dtype, seed=1), 3 * rows(r, m, dtype, seed=2)


def results(run: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    out = run(*arguments)
    return (out,) if isinstance(out, Tensor) else tuple(out)


def check(run: Callable[..., Any], reference: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Error <= 2 x that of the reference in the same dtype + a few ulp, against the reference in float64."""
    ours, peers = results(run, arguments), results(reference, arguments)
    wide = tuple(a.double() if isinstance(a, Tensor) else a for a in arguments)
    for i, (got, peer, exact) in enumerate(zip(ours, peers, results(reference, wide), strict=True)):
        assert (got.dtype, got.shape) == (peer.dtype, peer.shape), f"result {i}"
        assert got.is_contiguous(), f"result {i}"
        ulps = FLOAT64_FLOOR if got.dtype == torch.float64 else FLOOR_ULPS * torch.finfo(got.dtype).eps
        for norm in (torch.linalg.vector_norm, lambda t: t.abs().max() if t.numel() else t.sum()):
            error, theirs, size = (
                float(norm(t)) for t in (got.double() - exact, peer.double() - exact, exact)
            )
            message = f"result {i}: error {error:.3g} > 2 x {theirs:.3g} + {ulps * size:.3g}"
            assert error <= 2 * theirs + ulps * size, message


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"result {i}"
