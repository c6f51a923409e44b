"""Keys and values in one matrix product, where their weights lie together or are cast anyway."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jair_kernels as jk
from jair_kernels import _library
from jair_kernels._fusion_samples import arguments
from jair_kernels.testing import Expectation, FusionCase, Sample, faults, run

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

GATED, RESAMPLE = "fused_gated_fusion", "fused_latent_resample"
CASES = {
    "jair": FusionCase(GATED, 2, 5, 9, h=4, h_kv=2, kv_width=24, mask="some"),
    "flamingo": FusionCase(GATED, 2, 5, 9, options={"form": "flamingo"}, absent=("bk",)),
    "without_biases": FusionCase(GATED, 2, 5, 9, absent=("bk", "bv")),
    "projected": FusionCase(RESAMPLE, 2, 5, 9, kv_width=24, mask="some", options={"method": "projected"}),
    "latents": FusionCase(
        RESAMPLE, 2, 5, 9, absent=("bv",), options={"method": "projected", "attend_latents": True}
    ),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


def together(of: Sample) -> Sample:
    """The same values, wk and wv as rows of one tensor."""
    wk, wv = torch.cat([of.tensors["wk"], of.tensors["wv"]]).chunk(2)
    return Sample(of.op, of.name, {**of.tensors, "wk": wk, "wv": wv}, of.options, of.dy)


def products(of: Sample) -> int:
    with Products() as counted:
        run(of, "cpu")
    return counted.count


def kept_bytes(of: Sample) -> int:
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run(of, "cpu")
    return sum(kept.values())


@cases
def test_adjacent_weights_take_one_product(case: FusionCase, dtype: torch.dtype) -> None:
    of = case.sample(dtype)
    joint = together(of)
    assert products(of) - products(joint) == 2  # one forward, one backward
    assert kept_bytes(joint) == kept_bytes(of)
    expectation = Expectation.of(of)
    found = faults(run(joint, "cpu"), expectation.eager, expectation.expected, expectation.allowed)
    assert not found


@cases
def test_weights_that_are_cast_take_one_product(case: FusionCase) -> None:
    low = case.sample(torch.bfloat16)
    expectation, wide = Expectation.of(low), low.to(torch.float32)
    wide = Sample(wide.op, wide.name, wide.tensors, wide.options, low.dy)
    with torch.autocast("cpu", torch.bfloat16):
        assert products(low) - products(wide) == 2
        result = {name: t.bfloat16() for name, t in run(wide, "cpu").items()}
    assert not faults(result, expectation.eager, expectation.expected, expectation.allowed)


def test_weights_that_only_look_adjacent_are_left_alone() -> None:
    of = CASES["jair"].sample(torch.float32)
    wk, wv = of.tensors["wk"], of.tensors["wv"]
    assert wk is not None
    assert wv is not None
    gap = torch.cat([wk, wk[:1], wv])
    swapped = torch.cat([wv, wk])
    columns = torch.cat([wk, wv], dim=1)
    rows, width = wk.shape
    pairs = (
        (gap[:rows], gap[rows + 1 :]),
        (swapped[rows:], swapped[:rows]),
        (columns[:, :width], columns[:, width:]),
    )
    want = run(of, "cpu")
    for pair in pairs:
        apart = Sample(
            of.op, of.name, {**of.tensors, **dict(zip(("wk", "wv"), pair, strict=True))}, of.options, of.dy
        )
        assert products(apart) == products(of)
        for name, value in run(apart, "cpu").items():
            torch.testing.assert_close(value, want[name], msg=name)


def test_a_parameter_that_holds_both_learns() -> None:
    of = CASES["projected"].sample(torch.float64)
    names = ("wk", "wv")
    joint = torch.nn.Parameter(torch.cat([t for name in names if (t := of.tensors[name]) is not None]))
    split = dict(zip(names, joint.chunk(2), strict=True))
    named = arguments(of.op, {**of.tensors, **split})
    y = jk.fused_latent_resample(**named, **of.options, backend="cpu")
    (grad,) = torch.autograd.grad(y, joint, of.dy)
    want = run(of, "reference")
    torch.testing.assert_close(grad, torch.cat([want["dwk"], want["dwv"]]))


@pytest.mark.parametrize("case", [CASES["jair"], CASES["projected"]], ids=["jair", "projected"])
def test_compiled_and_mapped_under_autocast(case: FusionCase) -> None:
    of = case.sample()
    floats = {name: t for name, t in of.tensors.items() if t is not None and t.is_floating_point()}
    leaves = {name: t.detach().requires_grad_() for name, t in floats.items()}

    def call(**moved: torch.Tensor) -> torch.Tensor:
        named = arguments(of.op, {**of.tensors, **leaves, **moved})
        y: torch.Tensor = getattr(jk, of.op)(**named, **of.options, backend="cpu")
        return y

    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        want = call()
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")()
        weights = torch.stack([leaves["wv"], leaves["wv"] * 2])
        mapped = torch.func.vmap(lambda wv: call(wv=wv))(weights)
        doubled = call(wv=leaves["wv"] * 2)
    assert torch.equal(compiled, want)
    torch.testing.assert_close(mapped, torch.stack([want, doubled]), rtol=0.02, atol=0.02)
    grads, wants = (torch.autograd.grad(y.sum(), list(leaves.values())) for y in (compiled, want))
    for have, expected in zip(grads, wants, strict=True):
        torch.testing.assert_close(have, expected)
