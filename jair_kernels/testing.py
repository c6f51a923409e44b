"""What the tests of every op and backend share: inputs as data, the error contract, ways to provoke faults.

The contract (`assert_accurate`): forward and every gradient lie within twice the error of the plain PyTorch
expression in the same dtype, both measured against the float64 reference on the same rounded inputs, plus a
floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils import deterministic as _settings

import jair_kernels
from jair_kernels._samples import Case, Sample, sample_inputs
from jair_kernels.tokenlearner.reference import score_mlp

__all__ = [
    "FLOAT64_FLOOR",
    "FLOOR_ULPS",
    "ISAS",
    "Case",
    "Expectation",
    "Sample",
    "assert_accurate",
    "available_isas",
    "cpu_isa",
    "faults",
    "magnitudes",
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

_DRAWS = 4  # of random signs in `magnitudes`

ISAS = ("portable", "avx2", "avx512", "amx")


def run(sample: Sample, backend: str | None) -> dict[str, Tensor]:
    """The output "y" and the gradient "d<argument>" of every floating-point tensor."""
    leaves = {
        name: t.detach().requires_grad_()
        for name, t in sample.tensors.items()
        if t is not None and t.is_floating_point()
    }
    function = getattr(jair_kernels, sample.op)
    y: Tensor = function(**{**sample.tensors, **leaves}, **sample.options, backend=backend)
    grads = torch.autograd.grad(y, list(leaves.values()), sample.dy)
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def run_eager(sample: Sample) -> dict[str, Tensor]:
    """The plain PyTorch expression in the sample's own dtype."""
    return run(sample, "reference")


def run_float64(sample: Sample) -> dict[str, Tensor]:
    """The reference: the same rounded values, computed in float64."""
    return run(sample.to(torch.float64), "reference")


def magnitudes(sample: Sample, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The size against which the floor is measured: |expected|, and more where the result is a difference.

    Through a softmax every gradient of the scores is p (dP - delta), delta = sum_n p dP: with one dominant
    weight, equal tokens or N = 1 it cancels to nothing, and db2 always does. Rounding is relative to the
    terms, so the magnitude is what p (|dP| + |delta|) with random signs makes of each gradient, the root mean
    square over a few draws.
    """
    sizes = {name: t.abs() for name, t in expected.items()}
    if sample.op == "fused_tokenfuser" or sample.options.get("weighting") == "sigmoid":
        return sizes
    leaves, keep = _clean(sample)
    x, dy = leaves["x"], sample.dy.to(torch.float64)
    scores = leaves["scores"] if "scores" in leaves else _scores(sample, leaves)
    weights = scores.masked_fill(~keep, -torch.inf).softmax(1).masked_fill(~keep, 0).detach()
    d_weights = (x.detach() @ dy.transpose(1, 2)) / (
        keep.sum(1, keepdim=True).clamp(min=1) if _is_mean(sample) else 1
    )
    delta = (weights * d_weights).sum(1, keepdim=True)
    terms = weights * (d_weights.abs() + delta.abs())
    inputs = {name: t for name, t in leaves.items() if name != "x" or "scores" not in leaves}
    squares = {name: torch.zeros_like(t) for name, t in inputs.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(_DRAWS):
        signs = torch.randint(0, 2, terms.shape, generator=generator).to(terms) * 2 - 1
        grads = torch.autograd.grad(scores, list(inputs.values()), signs * terms, retain_graph=True)
        for name, grad in zip(inputs, grads, strict=True):
            squares[name] += grad.square() / _DRAWS
    return {
        name: t if name[1:] not in squares else (t.square() + squares[name[1:]]).sqrt()
        for name, t in sizes.items()
    }


_DRAWS = 4


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


def _scores(sample: Sample, leaves: dict[str, Tensor]) -> Tensor:
    parameters = (leaves.get(name) for name in ("w1", "b1", "w2", "b2", "norm_weight", "norm_bias"))
    options = {"eps": 1e-6, "approximate": "tanh"} | sample.options
    return score_mlp(leaves["x"], *parameters, **options)  # type: ignore[arg-type]


def _is_mean(sample: Sample) -> bool:
    return sample.options.get("reduction") == "mean"


def faults(
    ours: dict[str, Tensor], eager: dict[str, Tensor], expected: dict[str, Tensor], sizes: dict[str, Tensor]
) -> list[str]:
    """Where the contract is broken, in words; relative Frobenius error and largest error are both held."""
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
        floor = FLOAT64_FLOOR if peer.dtype == torch.float64 else FLOOR_ULPS * torch.finfo(peer.dtype).eps
        error, allowed = (
            t.to(device=reference.device, dtype=torch.float64) - reference for t in (result, peer)
        )
        if not bool(allowed.isfinite().all()):
            raise ValueError(
                f"{name}: the eager expression itself is not finite here, so nothing can be compared"
            )
        for norm, measure in (("Frobenius", torch.linalg.vector_norm), ("max", _largest)):
            have, peer_error, size = (float(measure(t)) for t in (error, allowed, sizes[name]))
            limit = 2 * peer_error + floor * size
            if not have <= limit:  # also catches NaN
                found.append(
                    f"{name}: {norm} error {have:.3g} > {limit:.3g} (eager {peer_error:.3g}, size {size:.3g})"
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
    sizes: dict[str, Tensor]

    @classmethod
    def of(cls, sample: Sample) -> Expectation:
        """The plain expression in the sample's dtype, the float64 reference and its magnitudes."""
        expected = run_float64(sample)
        return cls(sample, run_eager(sample), expected, magnitudes(sample, expected))

    def check(self, backend: str | None) -> None:
        """As `assert_accurate`."""
        found = faults(run(self.sample, backend), self.eager, self.expected, self.sizes)
        if found:
            dtype = self.sample.dy.dtype
            raise AssertionError("\n  ".join([f"{self.sample.op} {self.sample.name} {dtype} on {backend}:", *found]))


def assert_accurate(sample: Sample, backend: str | None) -> None:
    """Hold one call, forward and every gradient, to the contract.

    Raises:
        AssertionError: with every output that breaks it.
    """
    Expectation.of(sample).check(backend)


def available_isas() -> tuple[str, ...]:
    """Instruction sets of the CPU kernels that this processor has, from the plainest to the widest."""
    return ISAS[: torch.ops.jair_kernels.cpu_isa_best() + 1]


@contextmanager
def cpu_isa(name: str) -> Iterator[None]:
    """Within the block the CPU kernels use this instruction set: "portable", "avx2", "avx512" or "amx".

    Raises:
        ValueError: the name is unknown or the processor lacks it.
    """
    if name not in available_isas():
        raise ValueError(
            f"name: expected {' or '.join(map(repr, available_isas()))} on this processor, got {name!r}"
        )
    previous = torch.ops.jair_kernels.cpu_isa()
    torch.ops.jair_kernels.set_cpu_isa(ISAS.index(name))
    try:
        yield
    finally:
        torch.ops.jair_kernels.set_cpu_isa(previous)


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Within the block torch.empty and its kin, also those called by kernels, are filled with NaN."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    _settings.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        _settings.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
