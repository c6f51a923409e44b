"""Calls of the building block query_pool, and what they are held to: float64 and plain PyTorch's error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from jair_kernels._autograd import accumulate_dtype
from jair_kernels.query_pool.reference import query_pool
from jair_kernels.testing import FLOAT64_FLOOR, FLOOR_ULPS, faults
from jair_kernels.token_pool.reference import token_pool

Tensor = torch.Tensor
EPS = 1e-5
_DRAWS = 3  # of random signs
_TINY = 2.0**-26  # relative change that stands for a derivative in float64


@dataclass(frozen=True)
class Call:
    """The arguments of one call, as data."""

    b: int
    n: int
    d: int
    k: int
    norm: bool = True
    shared: bool = True
    mask: str = "none"  # "some": about half; "empty": all of the first image besides; "all": everything
    values: str = "plain"  # "shifted": mean/std = 100; "huge": one score dominates
    layout: str = "dense"  # "sliced", "transposed", "expanded"

    @property
    def name(self) -> str:
        """For pytest."""
        words = [self.mask if self.mask != "none" else "", self.values, self.layout]
        words += ["norm" if self.norm else "raw", "shared" if self.shared else "own"]
        shape = f"{self.b}x{self.n}x{self.d},k{self.k}"
        return "-".join([shape, *(w for w in words if w not in ("", "plain", "dense"))])

    def tensors(self, dtype: torch.dtype) -> dict[str, Any]:
        """x, queries, mask and dy, rounded to the dtype."""
        generator = torch.Generator().manual_seed(1000 * self.n + 10 * self.d + self.k)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        x, sets = normal(self.b, self.n, self.d) + 0.3, 1 if self.shared else self.b
        queries = 1.5 * self.d**-0.5 * normal(sets, self.k, self.d)
        if self.values == "shifted":
            x += 100 + torch.arange(self.n, dtype=torch.float64).remainder(3).view(1, -1, 1)
            if not self.norm:  # the scores stay moderate
                queries -= queries.mean(-1, keepdim=True)
        if self.values == "huge":
            x[:, self.n // 2] *= 60
            queries *= 8
        mask = None
        if self.mask != "none":
            mask = torch.rand(self.b, self.n, generator=generator) < (0.0 if self.mask == "all" else 0.6)
            mask[:1] &= self.mask != "empty"
        tensors = {"x": _laid_out(x.to(dtype), self.layout), "queries": queries.to(dtype), "mask": mask}
        return tensors | {"dy": normal(self.b, self.k, self.d).to(dtype)}


def _laid_out(x: Tensor, layout: str) -> Tensor:
    b, n, d = x.shape
    if layout == "sliced":
        wide = x.new_full((b, 2 * n, d + 3), float("nan"))
        wide[:, ::2, 2 : d + 2] = x
        return wide[:, ::2, 2 : d + 2]
    if layout == "transposed":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x[:1].expand(b, n, d) if layout == "expanded" else x


def run(kernel: Any, call: Call, tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Every output of a kernel's forward and backward."""
    x, queries, mask, dy = (tensors[name] for name in ("x", "queries", "mask", "dy"))
    y, softmax, stats = kernel.forward(x, queries, mask, call.norm, EPS)
    dx, dqueries = kernel.backward(dy, x, queries, mask, y, softmax, stats, call.norm)
    return {"y": y, "softmax": softmax, "stats": stats, "dx": dx, "dqueries": dqueries}


def differentiated(function: Callable[..., Tensor], tensors: dict[str, Any]) -> dict[str, Tensor]:
    """y, dx and dqueries of a differentiable function of (x, queries, mask)."""
    x, queries = (tensors[name].detach().requires_grad_() for name in ("x", "queries"))
    y = function(x, queries, tensors["mask"])
    dx, dqueries = torch.autograd.grad(y, (x, queries), tensors["dy"])
    return {"y": y.detach(), "dx": dx, "dqueries": dqueries}


@dataclass(frozen=True)
class Expectation:
    """The plain expression in the call's dtype, the float64 values, and what is always allowed."""

    call: Call
    tensors: dict[str, Any]
    eager: dict[str, Tensor]
    expected: dict[str, Tensor]
    allowed: dict[str, Tensor]
    lse: Tensor
    lse_size: Tensor

    @classmethod
    def of(cls, call: Call, dtype: torch.dtype) -> Expectation:
        """Made once for all kernels that compute in the dtype."""
        tensors = call.tensors(dtype)
        eager = differentiated(lambda *inputs: query_pool(*inputs, norm=call.norm, eps=EPS), tensors)
        wide = {name: t if name == "mask" or t is None else t.double() for name, t in tensors.items()}
        expected = _exact(call, wide, None)
        moved = [_exact(call, wide, draw) for draw in range(_DRAWS)]
        unit, inside = (
            FLOAT64_FLOOR if t == torch.float64 else FLOOR_ULPS * torch.finfo(t).eps
            for t in (dtype, accumulate_dtype(dtype))
        )
        allowed = {}
        for name, size in _sizes(call, wide, expected).items():
            shifts = torch.stack([m[name] - expected[name] for m in moved]) / _TINY
            allowed[name] = unit * size + inside * shifts.square().mean(0).sqrt()
        xhat, scores = _scores(call, wide)
        lse, size = scores.logsumexp(1), xhat.square() @ wide["queries"].square().mT
        return cls(call, tensors, eager, expected, allowed, lse, 1 + lse.abs() + size.sqrt().amax(1))

    def check(self, kernel: Any) -> None:
        """Hold a kernel to the contract: error <= 2 x that of plain PyTorch + the floor."""
        ours = run(kernel, self.call, self.tensors)
        found = faults({name: ours[name] for name in self.expected}, self.eager, self.expected, self.allowed)
        assert not found, "\n  ".join(["", *found])
        top, inverse = ours["softmax"].double().unbind(2)
        lse, dtype = torch.where(inverse == 0, -torch.inf, top - inverse.log()), ours["y"].dtype
        tolerance = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
        near = (lse - self.lse).abs() <= tolerance * self.lse_size
        assert ((lse == self.lse) | near).all(), "lse"


def _exact(call: Call, wide: dict[str, Any], draw: int | None) -> dict[str, Tensor]:
    def function(x: Tensor, queries: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        # LN(x - c) = LN(x): without the rounding of a large mean.
        xhat = F.layer_norm(x - x[..., :1].detach(), x.shape[-1:], eps=EPS) if call.norm else x
        scores = xhat @ queries.mT
        if draw is not None:
            size = (xhat.square() @ queries.square().mT).sqrt().detach()
            scores = scores + _TINY * size * _signs(scores, draw)
        return token_pool(xhat, scores, mask=mask)

    return differentiated(function, wide)


def _signs(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, like.shape, generator=generator).to(like.dtype) * 2 - 1


def _scores(call: Call, wide: dict[str, Any]) -> tuple[Tensor, Tensor]:
    x, mask = wide["x"], wide["mask"]
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0)
    xhat = F.layer_norm(x - x[..., :1], x.shape[-1:], eps=EPS) if call.norm else x
    scores = xhat @ wide["queries"].mT
    return xhat, scores if mask is None else scores.masked_fill(~mask.unsqueeze(-1), -torch.inf)


def _sizes(call: Call, wide: dict[str, Any], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The size of the terms that each element sums, as random signs add them: dS is a difference of two."""
    (xhat, scores), dy, queries = _scores(call, wide), wide["dy"], wide["queries"]
    weights = scores.softmax(1).nan_to_num(0)
    d_weights = xhat @ dy.mT
    terms = weights * (d_weights.abs() + (weights * d_weights).sum(1, keepdim=True).abs())
    dxhat = (weights.square() @ dy.square() + terms.square() @ queries.square()).sqrt()
    if call.norm:
        centred = wide["x"] - wide["x"].mean(-1, keepdim=True)
        dxhat = dxhat * (centred.square().mean(-1, keepdim=True) + EPS).rsqrt().nan_to_num(0)
    dqueries = terms.square().mT @ xhat.square()
    if queries.shape[0] != dqueries.shape[0]:
        dqueries = dqueries.sum(0, keepdim=True)
    y = (weights.square().mT @ xhat.square()).sqrt()
    return {
        "y": expected["y"].abs() + y,
        "dx": expected["dx"].abs() + dxhat,
        "dqueries": expected["dqueries"].abs() + dqueries.sqrt(),
    }
