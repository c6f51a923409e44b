"""What surrounds the kernels of the fusion ops: dispatcher, compilation, autocast, transforms, what is
saved.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from op_samples import assert_close
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import jair_kernels as jk
from jair_kernels import _library
from jair_kernels._fusion_samples import FUSION_OPS, PROJECTING, arguments
from jair_kernels.testing import FusionCase, Sample, poisoned_empty, run

sys.path.append(str(Path(__file__).parents[1]))  # last: an installed jair_kernels goes before the source tree

from benchmarks import fusion, measure

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

ATTENTION, RESAMPLE, GATED, LAYER = FUSION_OPS
LENGTHS = ((4, 7), (3, 9), (7, 6), (6, 33))  # the first batch has no other size: Dynamo would tie the two
PROJECTED, ABSORBED = ({"method": method} for method in ("projected", "absorbed"))
# Every op, with a mask where it changes the graph; the resampler in both forms, and where it chooses.
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"op": ATTENTION, "l": 5, "mask": "some"},
    "attention_in_ranges": {"op": ATTENTION, "l": 5, "ranges": "media"},
    "projected": {"op": RESAMPLE, "l": 5, "mask": "some", "options": PROJECTED},
    "absorbed": {"op": RESAMPLE, "l": 5, "mask": "some", "options": ABSORBED},
    # Between the first and the second of LENGTHS the other form becomes the one with fewer operations.
    "auto": {"op": RESAMPLE, "l": 9, "mask": "some"},
    "latents_attended": {"op": RESAMPLE, "l": 5, "options": {"attend_latents": True, **ABSORBED}},
    "jair": {"op": GATED, "l": 5, "mask": "some"},
    "flamingo": {"op": GATED, "l": 5, "ranges": "media", "options": {"form": "flamingo"}},
    "keys_given": {"op": GATED, "l": 5, "mask": "some", "kv_width": 64, "absent": PROJECTING},
    "layer": {"op": LAYER, "l": 1},
    "causal_layer": {"op": LAYER, "l": 1, "mask": "some", "options": {"causal": True}},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def sample(kind: str, b: int = 2, n: int = 7, dtype: torch.dtype = torch.float32) -> Sample:
    return FusionCase(b=b, n=n, **KINDS[kind]).sample(dtype)


class Module(torch.nn.Module):
    """A call over tensors by name, between two other operations."""

    def __init__(self, of: Sample, backend: str | None = None) -> None:
        super().__init__()
        self.op, self.options, self.backend = of.op, of.options, backend

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        named = arguments(self.op, dict(tensors))
        y: torch.Tensor = getattr(jk, self.op)(**named, **self.options, backend=self.backend) * 2
        return y


def leaves(of: Sample) -> dict[str, torch.Tensor]:
    """Detached tensors that require a gradient where they can."""
    named = {name: t for name, t in of.tensors.items() if t is not None}
    return {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in named.items()}


def gradients(y: torch.Tensor, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y.square().sum(), [t for t in tensors.values() if t.requires_grad]))


@pytest.mark.parametrize("kind", ["attention", "attention_in_ranges"])
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(kind: str, packed: bool) -> None:
    ops = torch.ops.jair_kernels
    case = FusionCase(b=2, n=5, **KINDS[kind])
    t = case.sample().tensors
    q, k, v = (t[name].transpose(1, 2) for name in "qkv")
    masks = (t.get("mask"), t.get("kv_range"))
    torch.library.opcheck(ops.cross_attention_forward.default, (q, k, v, *masks, 0.3))
    o, stats = ops.cross_attention_forward(q, k, v, *masks, 0.3)
    torch.library.opcheck(ops.cross_attention_backward.default, (o, q, k, v, *masks, o, stats, 0.3, packed))


@kinds
@pytest.mark.parametrize("grad", [False, True])
def test_one_graph_for_all_batches_and_lengths(kind: str, grad: bool) -> None:
    """In float64: compiled code may choose the other form of a resampler, which agrees to rounding."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Module(sample(kind)), fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for b, n in LENGTHS:
        of = sample(kind, b, n, torch.float64)
        tensors = leaves(of) if grad else of.tensors
        y, want = compiled(tensors), Module(of)(tensors)
        assert_close(y, want, 1e-12)
        if grad:
            for got, expected in zip(gradients(y, tensors), gradients(want, tensors), strict=True):
                assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1, "a new length made a new graph"


@pytest.mark.parametrize("kind", ["absorbed", "layer"])
def test_inductor(kind: str) -> None:
    of = sample(kind, dtype=torch.float64)
    tensors = leaves(of)
    y, want = torch.compile(Module(of), fullgraph=True)(tensors), Module(of)(tensors)
    assert_close(y, want, 1e-12)
    for got, expected in zip(gradients(y, tensors), gradients(want, tensors), strict=True):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


@kinds
def test_export_with_dynamic_sizes(kind: str) -> None:
    of = sample(kind, 3, 9)
    batch, keys = torch.export.Dim("batch", min=1), torch.export.Dim("keys", min=2)
    dims: dict[str, dict[int, Any]] = {
        "q": {0: batch}, "k": {0: batch, 2: keys}, "v": {0: batch, 2: keys}, "x": {0: batch, 1: keys},
        "t": {0: batch}, "f": {0: batch, 1: keys}, "mask": {0: batch, 1: keys}, "kv_range": {0: batch},
    }  # fmt: skip
    tensors = {name: t for name, t in of.tensors.items() if t is not None}
    shapes = {name: dims.get(name) for name in tensors}
    program = torch.export.export(Module(of), (tensors,), dynamic_shapes=(shapes,))
    for b, n in LENGTHS:
        other = sample(kind, b, n)
        given = {name: t for name, t in other.tensors.items() if t is not None}
        assert_close(program.module()(given), Module(other)(given))


@pytest.mark.parametrize("kind", ["attention_in_ranges", "auto", "jair", "layer"])
def test_aot_inductor(kind: str, tmp_path: Path) -> None:
    of = sample(kind)
    tensors = {name: t for name, t in of.tensors.items() if t is not None}
    program = torch.export.export(Module(of), (tensors,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "module.pt2"))
    assert_close(torch._inductor.aoti_load_package(package)(tensors), Module(of)(tensors))


@kinds
def test_autocast_computes_in_its_dtype_and_keeps_no_copy_of_a_weight(kind: str) -> None:
    of = sample(kind)
    tensors = leaves(of)
    kept: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = Module(of, "cpu")(tensors)
    wide = of.to(torch.float64)
    exact = Module(wide)(wide.tensors)
    assert y.dtype == torch.bfloat16
    assert_close(y, exact, 3e-2)
    grads = gradients(y, tensors)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
    weights = {tuple(t.shape) for name, t in tensors.items() if name.startswith("w")}
    assert not [t for t in kept if t.dtype == torch.bfloat16 and tuple(t.shape) in weights]
    with torch.autocast("cpu", torch.bfloat16):
        reference = Module(of, "reference")(tensors)
    assert reference.dtype == torch.bfloat16
    assert_close(reference, exact, 3e-2)


@kinds
def test_second_derivatives_and_forward_mode_are_refused(kind: str) -> None:
    of = sample(kind)
    tensors = leaves(of)
    first = next(t for t in tensors.values() if t.requires_grad)
    (grad,) = torch.autograd.grad(Module(of)(tensors).sum(), first, create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"^{of.op}: expected to be differentiated once"):
        torch.autograd.grad(grad.sum(), first)
    name = next(iter(tensors))
    with pytest.raises(NotImplementedError, match=rf"^{of.op}: expected reverse-mode"):
        torch.func.jvp(lambda t: Module(of)({**tensors, name: t}), (first,), (first,))


@kinds
def test_vmap_is_a_loop(kind: str) -> None:
    of = sample(kind)
    varying = [name for name in ("q", "k", "v", "x", "t", "f") if name in of.tensors]
    stacked = {name: torch.stack([of.tensors[name], of.tensors[name].flip(1)]) for name in varying}

    def call(moving: dict[str, torch.Tensor]) -> torch.Tensor:
        return Module(of)({**of.tensors, **moving})

    got = torch.func.vmap(call)(stacked)
    for i in range(2):
        assert_close(got[i], call({name: t[i] for name, t in stacked.items()}))


@kinds
def test_meta_tensors_give_shapes(kind: str) -> None:
    of = sample(kind)
    meta = {name: None if t is None else t.to("meta") for name, t in of.tensors.items()}
    want = Module(of)(of.tensors)
    assert (got := Module(of, "cpu")(meta)).shape == want.shape
    assert (got.dtype, got.device.type) == (want.dtype, "meta")


CASES = {
    ATTENTION: fusion.FusionCase(ATTENTION, 2, 16, 49, 4, 16),
    RESAMPLE: fusion.FusionCase(RESAMPLE, 2, 16, 49, 4, 16, method="projected"),
    GATED: fusion.FusionCase(GATED, 2, 16, 49, 4, 16, hidden=96),
    LAYER: fusion.FusionCase(LAYER, 2, 49, 49, 4, 16, hidden=96),
}


@pytest.mark.parametrize("op", CASES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_flops_are_counted(op: str, backend: str) -> None:
    case = CASES[op]
    tensors = case.tensors(torch.float32, "cpu", 0)
    dy = tensors.pop("dy")
    given = {name: t.requires_grad_() for name, t in tensors.items()}
    call = fusion.packed(op, case, lambda **named: getattr(jk, op)(**named, backend=backend))
    with FlopCounterMode(display=False) as counter:
        y = call(**given)
    forward, backward = case.flops()
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.backward(dy)
    assert counter.get_total_flops() == backward


@pytest.mark.parametrize(
    ("op", "most"), [(GATED, 0.60), (LAYER, 0.68)], ids=["gated_fusion", "transformer_layer"]
)
@pytest.mark.parametrize("peer", ["eager", "sdpa"])
def test_saved_bytes(op: str, most: float, peer: str) -> None:
    """Of a base-sized layer, beside inputs and parameters."""
    sizes = {GATED: (2, 64, 64), LAYER: (2, 128, 128)}[op]
    case = fusion.FusionCase(op, *sizes, 12, 64, hidden=2048)
    tensors = case.tensors(torch.float32, "cpu", 0)
    tensors.pop("dy")
    given = {name: t.requires_grad_() for name, t in tensors.items()}
    ours = measure.saved_bytes(fusion.packed(op, case, getattr(jk, op)), given)
    theirs = measure.saved_bytes(fusion.packed(op, case, fusion.peer(op, peer)), given)
    assert ours <= most * theirs


@pytest.mark.parametrize("kind", ["projected", "jair", "flamingo", "layer"])
def test_a_graph_that_is_kept_gives_its_gradients_again(kind: str) -> None:
    """The backward lets go of what was saved, but of no more than autograd itself would."""
    tensors = leaves(of := sample(kind))
    inputs = [t for t in tensors.values() if t.requires_grad]
    y = Module(of, "cpu")(tensors)
    first = torch.autograd.grad(y, inputs, y, retain_graph=True)
    second = torch.autograd.grad(y, inputs, y)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, inputs, y)


@pytest.mark.parametrize(
    ("op", "most"), [(GATED, 1.15), (LAYER, 0.90)], ids=["gated_fusion", "transformer_layer"]
)
def test_peak_bytes_of_a_step(op: str, most: float) -> None:
    """Of a base-sized layer, gradients included; the graph of plain PyTorch frees tensors one by one."""
    case = fusion.FusionCase(op, *{GATED: (8, 64, 64), LAYER: (8, 128, 128)}[op], 12, 64, hidden=2048)
    tensors = case.tensors(torch.bfloat16, "cpu", 0)
    dy = tensors.pop("dy")
    given = {name: t.requires_grad_() for name, t in tensors.items()}

    def peak(function: Any) -> int:
        call = fusion.packed(op, case, function)
        return measure.peak_bytes(lambda _: torch.autograd.grad(call(**given), given.values(), dy), "cpu")

    assert peak(getattr(jk, op)) <= most * peak(fusion.peer(op, "eager"))


@kinds
def test_bits_do_not_depend_on_memory_or_the_run(kind: str) -> None:
    of = sample(kind, 3, 40)
    first = run(of, "cpu")
    with poisoned_empty():
        second = run(of, "cpu")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
