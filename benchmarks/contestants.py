"""How each contestant, ours or a peer, computes an op: a call per direction, and the counts of the op."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

import jair_kernels
from benchmarks import fusion, inputs
from benchmarks.fusion import FusionCase
from benchmarks.model import ModelCase
from benchmarks.model import Problem as ModelProblem
from benchmarks.shapes import COMPILED, Group
from jair_kernels.token_pool import cost as pool_cost
from jair_kernels.tokenfuser import cost as fuser_cost
from jair_kernels.tokenlearner import cost as learner_cost

Tensors = dict[str, torch.Tensor]
_COSTS = {
    "fused_token_pool": pool_cost,
    "fused_tokenfuser": fuser_cost,
    "fused_tokenlearner": learner_cost,
}
# Rounding only: a contestant that differs by more computes something else, and its time means nothing.
_AGREEMENT = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Problem:
    """The tensors of a group: parameters, and activations over which the calls rotate; `tuned`: torch.compile
    may try kernels.
    """

    group: Group
    parameters: Tensors
    rotation: list[Tensors]
    device: str
    tuned: bool

    @classmethod
    def build(cls, group: Group, device: str, working_set: int, tuned: bool = False) -> Problem:
        """`working_set`: bytes the rotation must exceed, so that no cache holds it; 0 = one set of inputs."""
        first = inputs.activations(group.op, group.case, group.dtype, device, 0)
        count = 1 + working_set // sum(value.nbytes for value in first.values())
        more = (inputs.activations(group.op, group.case, group.dtype, device, s) for s in range(1, count))
        parameters = inputs.parameters(group.op, group.case, group.dtype, device)
        return cls(group, parameters, [first, *more], device, tuned)

    def arguments(self, index: int) -> Tensors:
        """Arguments of one call, gradients wanted in the direction that computes them."""
        activations = self.rotation[index % len(self.rotation)]
        tensors = {name: value for name, value in activations.items() if name != "dy"} | self.parameters
        wanted = self.group.direction == "fwdbwd"
        return {name: t.requires_grad_(wanted and t.is_floating_point()) for name, t in tensors.items()}

    def gradient(self, index: int) -> torch.Tensor:
        """What arrives at the output in the backward."""
        return self.rotation[index % len(self.rotation)]["dy"]

    def function(self, backend: str) -> Callable[..., torch.Tensor]:
        """The op as this contestant computes it; all take the same tensors by name."""
        run = _function(self.group.op, backend, compile_mode(self.group, self.device, self.tuned))
        case = self.group.case
        return fusion.packed(self.group.op, case, run) if isinstance(case, FusionCase) else run

    def call(self, run: Callable[..., torch.Tensor]) -> Callable[[int], tuple[torch.Tensor, ...]]:
        """One timed call on the index-th inputs: the output, and in "fwdbwd" every gradient."""

        def forward(index: int) -> tuple[torch.Tensor, ...]:
            with torch.no_grad():
                return (run(**self.arguments(index)),)

        def both(index: int) -> tuple[torch.Tensor, ...]:
            arguments = self.arguments(index)
            y = run(**arguments)
            wanted = [tensor for tensor in arguments.values() if tensor.requires_grad]
            return (y, *torch.autograd.grad(y, wanted, self.gradient(index)))

        return forward if self.group.direction == "fwd" else both


AnyProblem = Problem | ModelProblem


def problem_of(group: Group, device: str, working_set: int, tuned: bool = False) -> AnyProblem:
    """What the contestants of a group are given."""
    if isinstance(group.case, ModelCase):
        return ModelProblem(group.op, group.case, group.dtype, group.direction == "fwdbwd", device)
    return Problem.build(group, device, working_set, tuned)


def compile_mode(group: Group, device: str, tuned: bool) -> str:
    """The mode of peers by torch.compile. Tuning takes up to a minute a row. Launches on a GPU are hidden
    from the clock, so a CUDA graph would only add copies of its inputs.
    """
    may_tune = tuned and device == "cuda" and not isinstance(group.case, ModelCase)
    return "max-autotune-no-cudagraphs" if may_tune else "default"


def _function(op: str, backend: str, mode: str) -> Callable[..., torch.Tensor]:
    if backend in ("eager", "sdpa"):
        return fusion.peer(op, backend)
    if backend in COMPILED:
        compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False, mode=mode)
        return fusion.peer(op, COMPILED[backend], compiled)
    fused: Callable[..., torch.Tensor] = getattr(jair_kernels, op)
    return lambda **arguments: fused(**arguments, backend=backend)


def disagreement(group: Group, got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> str | None:
    """Why two results are not the same computation, or None; all tensors of a call taken as one vector."""
    if group.op == "JAIR.generate":  # of words nearly as likely, rounding may choose another
        return None if got[0].shape == want[0].shape else f"{list(got[0].shape)} words, {list(want[0].shape)}"
    error = norm = 0.0
    for ours, theirs in zip(got, want, strict=True):
        exact = theirs.detach().double()
        error += float((ours.detach().double() - exact).square().sum())
        norm += float(exact.square().sum())
    relative = math.sqrt(error / norm)
    if relative <= _AGREEMENT[group.dtype]:
        return None
    return (
        f"relative difference {relative:.2e} to eager PyTorch, expected at most {_AGREEMENT[group.dtype]:g}"
    )


def counts(group: Group) -> dict[str, int]:
    """FLOPs, and the bytes that must cross memory at least; the same for every contestant."""
    if isinstance(group.case, ModelCase):
        return group.case.counts(group.direction == "fwdbwd")
    case, itemsize = group.case, inputs.TORCH_DTYPES[group.dtype].itemsize
    if isinstance(case, FusionCase):
        (flops, back), (moved, moved_back) = case.flops(), case.bytes(itemsize)
        both = group.direction == "fwdbwd"
        return {"flops": flops + both * back, "bytes": moved + both * moved_back}
    hidden = () if group.op == "fused_token_pool" else (case.h,)
    sizes = (case.b, case.n, case.d, *hidden, case.k)
    cost = _COSTS[group.op]
    flops, moved = cost.forward_flops(*sizes), cost.forward_bytes(*sizes, itemsize)
    if group.direction == "fwdbwd":
        flops += cost.backward_flops(*sizes)
        moved += cost.backward_bytes(*sizes, itemsize)
    return {"flops": flops, "bytes": moved}
