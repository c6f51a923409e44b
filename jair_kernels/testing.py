"""What the tests of every op and backend share: inputs as data, the error contract, ways to provoke faults.

The contract (`assert_accurate`): forward and every gradient lie within twice the error of the plain PyTorch
expression in the same dtype, both measured against the float64 reference on the same rounded inputs, plus a
floor.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass

import torch

import jair_kernels
from jair_kernels._autograd import accumulate_dtype
from jair_kernels._conditions import ISAS, available_isas, cpu_isa, poisoned_empty
from jair_kernels._fusion_samples import FUSION_OPS, FusionCase, arguments
from jair_kernels._rounding import TINY, rounded
from jair_kernels._samples import Case, Sample, sample_inputs
from jair_kernels.token_pool.reference import token_pool
from jair_kernels.tokenlearner.reference import score_mlp

__all__ = [
    "FLOAT64_FLOOR",
    "FLOOR_ULPS",
    "ISAS",
    "Case",
    "Expectation",
    "FusionCase",
    "Sample",
    "assert_accurate",
    "available_isas",
    "cpu_isa",
    "faults",
    "floors",
    "poisoned_empty",
    "run",
    "run_eager",
    "run_float64",
    "sample_inputs",
]

Tensor = torch.Tensor

# Always allowed, in spacings of the dtype (finfo.eps) relative to the size of what is summed. Rounding the
# result costs half of one; the rest is for results that eager hits by luck, such as an exact zero or a sum of
# one term, where twice its error is nothing.
FLOOR_ULPS = 2.0
# In float64 the eager expression is the reference itself, so its own rounding in sums over D and N terms of
# either sign has to fit in the floor: 450 spacings.
FLOAT64_FLOOR = 1e-13

_DRAWS = 8  # of random signs in `floors`


def required(op: str, tensors: dict[str, Tensor | None]) -> list[Tensor]:
    """Of the tensors of a call those that are never None, in their order: what `why_not` takes."""
    parameters = inspect.signature(getattr(jair_kernels, op)).parameters.values()
    names = [p.name for p in parameters if p.annotation == "torch.Tensor"]
    return [t for t in map(tensors.get, names) if t is not None]


def run(sample: Sample, backend: str | None) -> dict[str, Tensor]:
    """The output "y" and the gradient "d<argument>" of every floating-point tensor."""
    leaves = {
        name: t.detach().requires_grad_()
        for name, t in sample.tensors.items()
        if t is not None and t.is_floating_point()
    }
    function = getattr(jair_kernels, sample.op)
    named = arguments(sample.op, {**sample.tensors, **leaves})
    y: Tensor = function(**named, **sample.options, backend=backend)
    grads = torch.autograd.grad(y, list(leaves.values()), sample.dy)
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def run_eager(sample: Sample) -> dict[str, Tensor]:
    """The plain PyTorch expression in the sample's own dtype."""
    return run(sample, "reference")


def run_float64(sample: Sample, draw: int | None = None) -> dict[str, Tensor]:
    """The reference: the same rounded values in float64, LayerNorm fed with rows less their first element.

    LN(x - c) = LN(x), so this is the plain expression, but exact on constant rows, where 1/std = 1000
    would make the rounding of a float64 mean visible. The fusion ops are their own reference. With a `draw`
    every intermediate carries a relative error of size TINY and random sign.
    """
    with nullcontext() if draw is None else rounded(draw):
        return _float64(sample, draw)


def _float64(sample: Sample, draw: int | None) -> dict[str, Tensor]:
    if sample.op in FUSION_OPS:
        return run(sample.to(torch.float64), "reference")
    leaves, keep = _clean(sample)
    scores = _scores(sample, leaves, draw)
    if sample.op == "fused_tokenfuser":
        y = scores.sigmoid() @ leaves["tokens"]
    else:
        pooling = {
            name: sample.options[name] for name in ("weighting", "reduction") if name in sample.options
        }
        y = token_pool(leaves["x"], scores, mask=keep.squeeze(-1), **pooling)
    grads = torch.autograd.grad(y, list(leaves.values()), sample.dy.to(torch.float64))
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def floors(sample: Sample, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """What every element is always allowed: a few spacings of the dtype times the size of what is summed,
    and in the dtype that kernels accumulate in, what rounding every intermediate does to it.

    Gradients of parameters sum dS over the tokens, where terms of either sign cancel: db2 of a softmax to
    nothing. A softmax makes each term a difference besides, dS = p (dP - delta), delta = sum_n p dP, which is
    nothing for N = 1, equal tokens or one dominant weight. Rounding is relative to the terms; so the size is
    what p (|dP| + |delta|), for a sigmoid w (1 - w) |dP|, with random signs make of each gradient.
    """
    moved = [run_float64(sample, draw) for draw in range(_DRAWS)]
    unit, unit_inside = (_floor(dtype) for dtype in (sample.dy.dtype, accumulate_dtype(sample.dy.dtype)))
    allowed = {}
    for name, size in _sizes(sample, expected).items():
        shifts = torch.stack([m[name] - expected[name] for m in moved]) / TINY
        allowed[name] = unit * size + unit_inside * shifts.square().mean(0).sqrt()
    return allowed


def _floor(dtype: torch.dtype) -> float:
    return FLOAT64_FLOOR if dtype == torch.float64 else FLOOR_ULPS * torch.finfo(dtype).eps


def _sizes(sample: Sample, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    sizes = {name: t.abs() for name, t in expected.items()}
    if sample.op in FUSION_OPS:
        return sizes | _gate_sizes(sample, expected)
    leaves, keep = _clean(sample)
    scores, dy = _scores(sample, leaves), sample.dy.to(torch.float64)
    logits, x = scores.detach(), leaves["x"].detach()
    d_weights = dy @ leaves["tokens"].detach().mT if sample.op == "fused_tokenfuser" else x @ dy.mT
    if sample.options.get("reduction") == "mean":
        d_weights = d_weights / keep.sum(1, keepdim=True).clamp(min=1)
    if sample.op != "fused_tokenfuser" and sample.options.get("weighting") != "sigmoid":
        weights = logits.masked_fill(~keep, -torch.inf).softmax(1).masked_fill(~keep, 0)
        terms = weights * (d_weights.abs() + (weights * d_weights).sum(1, keepdim=True).abs())
    else:
        terms = (logits.sigmoid() * (-logits).sigmoid() * d_weights.abs()).masked_fill(~keep, 0)
    inputs = [name for name in leaves if name != "tokens" and (name != "x" or "scores" not in leaves)]
    squares = {name: sizes[f"d{name}"].square() for name in inputs}
    for draw in range(_DRAWS):
        signed = _signs(terms, draw) * terms
        grads = torch.autograd.grad(scores, [leaves[name] for name in inputs], signed, retain_graph=True)
        for name, grad in zip(inputs, grads, strict=True):
            squares[name] += grad.square() / _DRAWS
    return sizes | {f"d{name}": square.sqrt() for name, square in squares.items()}


def _gate_sizes(sample: Sample, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """A gate's gradient sums the product of the branch's output and its gradient over all tokens; its size is
    what these terms sum to with random signs.
    """
    names = [name for name in ("dalpha", "dbeta") if name in expected]
    squares = {name: expected[name].square() for name in names}
    for draw in range(_DRAWS if names else 0):
        with rounded(draw, products_alone=True):
            moved = run(sample.to(torch.float64), "reference")
        for name in names:
            squares[name] += ((moved[name] - expected[name]) / TINY).square() / _DRAWS
    return {name: square.sqrt() for name, square in squares.items()}


def _signs(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1


def _clean(sample: Sample) -> tuple[dict[str, Tensor], Tensor]:
    """Float64 leaves with masked tokens zeroed, and the mask as [B,N,1]."""
    tensors = sample.to(torch.float64).tensors
    x, mask = tensors["x"], tensors.get("mask")
    assert x is not None
    keep = torch.ones_like(x[..., :1], dtype=torch.bool) if mask is None else mask.unsqueeze(-1)
    leaves = {}
    for name, t in tensors.items():
        if t is not None and name != "mask":
            cleaned = t.detach().masked_fill(~keep, 0) if name in ("x", "scores") else t.detach()
            leaves[name] = cleaned.requires_grad_()
    return leaves, keep


def _scores(sample: Sample, leaves: dict[str, Tensor], draw: int | None = None) -> Tensor:
    if "scores" in leaves:
        given = leaves["scores"]
        if draw is None:
            return given
        softmax = sample.options.get("weighting") != "sigmoid"  # it sees scores below their largest, exactly
        depth = 1 + (given - given.amax(1, keepdim=True)).abs() if softmax else given
        return given + TINY * _signs(given, draw) * depth.detach()
    x = leaves["x"]
    parameters = (leaves["w1"], leaves.get("b1"), leaves["w2"], leaves.get("b2"))
    norm = (leaves.get("norm_weight"), leaves.get("norm_bias"))
    eps, approximate = (
        sample.options.get(name, other) for name, other in (("eps", 1e-6), ("approximate", "tanh"))
    )
    x = x - x[..., :1].detach() if draw is None else x
    return score_mlp(x, *parameters, *norm, float(eps), str(approximate))


def faults(
    ours: dict[str, Tensor], eager: dict[str, Tensor], expected: dict[str, Tensor], allowed: dict[str, Tensor]
) -> list[str]:
    """Where the contract is broken, in words; the error's Frobenius norm and largest element are held."""
    found = []
    for name, reference in expected.items():
        result, peer = ours[name], eager[name]
        if result.dtype != peer.dtype or result.shape != reference.shape:
            found.append(
                f"{name}: {result.dtype} {list(result.shape)}, expected {peer.dtype} {list(reference.shape)}"
            )
            continue
        if reference.numel() == 0:
            continue
        error, peer_error = (
            t.to(device=reference.device, dtype=torch.float64) - reference for t in (result, peer)
        )
        if not bool(peer_error.isfinite().all()):
            raise ValueError(
                f"{name}: the eager expression itself is not finite here, so nothing can be compared"
            )
        for norm, measure in (("Frobenius", torch.linalg.vector_norm), ("max", _largest)):
            have, theirs, floor = (float(measure(t)) for t in (error, peer_error, allowed[name]))
            if not have <= 2 * theirs + floor:  # also catches NaN
                size = float(measure(reference))
                found.append(
                    f"{name}: {norm} error {have:.3g} > 2 x {theirs:.3g} + {floor:.3g}, of {size:.3g}"
                )
    return found


def _largest(t: Tensor) -> Tensor:
    return t.abs().max()


@dataclass(frozen=True)
class Expectation:
    """What one call is held to; made once, it serves every backend and instruction set."""

    sample: Sample
    eager: dict[str, Tensor]
    expected: dict[str, Tensor]
    allowed: dict[str, Tensor]

    @classmethod
    def of(cls, sample: Sample) -> Expectation:
        """The plain expression in the sample's dtype, the float64 reference and the floors."""
        expected = run_float64(sample)
        return cls(sample, run_eager(sample), expected, floors(sample, expected))

    def check(self, backend: str | None) -> None:
        """As `assert_accurate`."""
        found = faults(run(self.sample, backend), self.eager, self.expected, self.allowed)
        if found:
            dtype = self.sample.dy.dtype
            raise AssertionError(
                "\n  ".join([f"{self.sample.op} {self.sample.name} {dtype} on {backend}:", *found])
            )


def assert_accurate(sample: Sample, backend: str | None) -> None:
    """Hold one call, forward and every gradient, to the contract.

    Raises:
        AssertionError: with every output that breaks it.
    """
    Expectation.of(sample).check(backend)
