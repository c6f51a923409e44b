"""torch.compile, torch.export and AOTInductor: one graph, any batch and length, the numbers of eager code."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from op_samples import MASKED, OPS, Call, assert_close, sample
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.torch_version import TorchVersion

import jair_kernels as jk
from jair_kernels import _library

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

LENGTHS = ((2, 7), (3, 9), (5, 4), (4, 33))
CASES = [(op, False) for op in OPS] + [(op, True) for op in MASKED]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Doubled(torch.nn.Module):
    """An op between two others, so that the graph is more than the op."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        moved = {**tensors, "x": tensors["x"] + 1}
        y: torch.Tensor = getattr(jk, self.op)(**moved) * 2
        return y


def expected(call: Call) -> torch.Tensor:
    return call.reference(x=call.tensors["x"] + 1) * 2


def gradients(y: torch.Tensor, call: Call) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y.square().sum(), list(call.differentiable().values())))


def assert_same_gradients(y: torch.Tensor, call: Call) -> None:
    """The gradients through y are those of eager code, bit by bit."""
    for got, want in zip(gradients(y, call), gradients(Doubled(call.op)(call.tensors), call), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(("op", "masked"), CASES)
@pytest.mark.parametrize("grad", [False, True])
def test_one_graph_for_all_batches_and_lengths(op: str, masked: bool, grad: bool) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Doubled(op), fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for b, n in LENGTHS:
        call = sample(op, b, n, masked=masked)
        call = call.requiring_grad() if grad else call
        y = compiled(call.tensors)
        assert_close(y, expected(call))
        if grad:
            assert_same_gradients(y, call)
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1, "a new length made a new graph"


@pytest.mark.parametrize("op", OPS)
def test_automatic_dynamic_shapes_recompile_once(op: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Doubled(op), fullgraph=True, backend=counter)
    frames = []
    for b, n in LENGTHS:
        call = sample(op, b, n).requiring_grad()
        gradients(compiled(call.tensors), call)
        frames.append(counter.frame_count)
    assert len(set(frames[1:])) == 1, "the second length makes the graph for all"


@pytest.mark.parametrize("op", OPS)
def test_inductor(op: str) -> None:
    compiled = torch.compile(Doubled(op), fullgraph=True, dynamic=True)
    for b, n in LENGTHS[:2]:
        call = sample(op, b, n).requiring_grad()
        y = compiled(call.tensors)
        assert_close(y, expected(call))
        assert_same_gradients(y, call)


@pytest.mark.parametrize("op", OPS)
def test_the_graph_holds_the_kernel(op: str) -> None:
    targets: list[str] = []

    def look(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    call = sample(op)
    torch.compile(Doubled(op), fullgraph=True, backend=look)(call.tensors)
    assert f"jair_kernels.{op.removeprefix('fused_')}_forward.default" in targets


@pytest.mark.parametrize("op", OPS)
def test_autocast_around_and_inside_compiled_code(op: str) -> None:
    call = sample(op)
    compiled = torch.compile(Doubled(op), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        outside = compiled(call.tensors)

    def inner(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return Doubled(op)(tensors)

    inside = torch.compile(inner, fullgraph=True, backend="aot_eager")(call.tensors)
    assert outside.dtype == inside.dtype == torch.bfloat16
    assert torch.equal(outside, inside)


@pytest.mark.parametrize("op", OPS)
def test_use_backend_around_compiled_code(op: str) -> None:
    """The compiled code follows the block it is called in, in every thread."""
    call = sample(op)
    want = expected(call)
    graphs: list[list[str]] = []

    def look(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes if "jair_kernels" in str(node.target)])
        return graph

    compiled = torch.compile(Doubled(op), fullgraph=True, backend=look)
    assert_close(compiled(call.tensors), want)
    with jk.use_backend("reference"):
        assert torch.equal(compiled(call.tensors), want)
        others: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: others.append(compiled(call.tensors)))
        thread.start()
        thread.join()
    assert_close(compiled(call.tensors), want)
    assert [bool(graph) for graph in graphs] == [True, False], "one graph with the kernel, one without"
    assert torch.equal(others[0], compiled(call.tensors))


@pytest.mark.parametrize("op", OPS)
def test_use_backend_inside_compiled_code(op: str) -> None:
    call = sample(op)

    def both(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        with jk.use_backend("reference"):
            first = getattr(jk, op)(**tensors)
        return first, getattr(jk, op)(**tensors)

    first, second = torch.compile(both, fullgraph=True, backend="eager")(call.tensors)
    assert torch.equal(first, call.reference())
    assert torch.equal(second, call(backend="cpu"))
    assert jk._backends._forced.backend is None


def exported(op: str, strict: bool, masked: bool = False) -> tuple[torch.export.ExportedProgram, Call]:
    call = sample(op, masked=masked)
    b, n = torch.export.Dim("b", max=64), torch.export.Dim("n", max=1024)
    axes = {"x": {0: b, 1: n}, "scores": {0: b, 1: n}, "mask": {0: b, 1: n}, "tokens": {0: b}}
    shapes = {name: axes.get(name) for name in call.tensors}
    return torch.export.export(Doubled(op), (call.tensors,), dynamic_shapes=(shapes,), strict=strict), call


@pytest.mark.parametrize(("op", "masked"), CASES)
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_batch_and_length(op: str, masked: bool, strict: bool, tmp_path: Path) -> None:
    program, _ = exported(op, strict, masked)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    for b, n in ((1, 1), *LENGTHS):
        call = sample(op, b, n, masked=masked)
        assert_close(loaded(call.tensors), expected(call))


class AllOps(torch.nn.Module):
    """The three ops in a row, with their parameters as the module's own."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in sample("fused_tokenlearner").tensors.items():
            if name != "x":
                self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parameters = dict(self.named_buffers())
        tokens = jk.fused_tokenlearner(x, **parameters, mask=mask)
        mixed = tokens + jk.fused_token_pool(x, x[:, :, :3], weighting="sigmoid", reduction="mean", mask=mask)
        return x + jk.fused_tokenfuser(x, mixed, **parameters)


def test_aot_inductor_package(tmp_path: Path) -> None:
    model = AllOps()
    b, n = torch.export.Dim("b", max=64), torch.export.Dim("n", max=1024)
    first = sample("fused_tokenlearner", masked=True).tensors
    shapes = {"x": {0: b, 1: n}, "mask": {0: b, 1: n}}
    with torch.no_grad():
        program = torch.export.export(model, (first["x"], first["mask"]), dynamic_shapes=shapes)
        quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2"), inductor_configs=quick
        )
        package = torch._inductor.aoti_load_package(path)
        for b_, n_ in LENGTHS:
            t = sample("fused_tokenlearner", b_, n_, masked=True, seed=n_).tensors
            assert_close(package(t["x"], t["mask"]), model(t["x"], t["mask"]))


@pytest.mark.parametrize("op", OPS)
def test_activation_checkpointing_compiled_and_not(op: str) -> None:
    from torch.utils.checkpoint import checkpoint

    call = sample(op).requiring_grad()
    for function in (Doubled(op), torch.compile(Doubled(op), fullgraph=True, backend="aot_eager")):
        assert_same_gradients(checkpoint(function, call.tensors, use_reentrant=False), call)


def test_a_bad_argument_is_refused_in_compiled_code_too() -> None:
    call = sample("fused_token_pool")
    compiled = torch.compile(Doubled("fused_token_pool"), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="expected shape"):  # Dynamo wraps the ValueError in its own type
        compiled({**call.tensors, "scores": torch.zeros(2, 8, 3)})


# Older releases stop in Dynamo, with an error of its own, before our code can say why.
TRACES_TRANSFORMS = torch.__version__ >= TorchVersion("2.13")


def derivatives(op: str) -> dict[str, Any]:
    """Functions of x that torch.func or forward mode differentiate."""
    call = sample(op)

    def value(x: torch.Tensor) -> torch.Tensor:
        return call(x=x).square().sum()

    return {
        "grad": torch.func.grad(value),
        "second": torch.func.grad(lambda x: torch.func.grad(value)(x).sum()),
        "jvp": lambda x: torch.func.jvp(value, (x,), (x,))[1],
        "dual": value,
    }


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["grad", "second", "jvp", "dual"])
def test_derivatives_that_dynamo_would_lose_are_refused(op: str, kind: str) -> None:
    x = sample(op).tensors["x"]
    compiled = torch.compile(derivatives(op)[kind], fullgraph=True, backend="aot_eager")
    message = f"{op}: expected torch.func and forward mode outside of torch.compile, got one within"
    message = message if TRACES_TRANSFORMS else "not a constant"
    if kind == "dual" and torch.__version__ >= TorchVersion("2.14"):
        message = "Attempted to wrap a dual tensor input"  # Dynamo's own
    with forward_ad.dual_level() if kind == "dual" else nullcontext():
        x = forward_ad.make_dual(x, x) if kind == "dual" else x
        with pytest.raises(Exception, match=message):  # Dynamo wraps the NotImplementedError in its own type
            compiled(x)


@pytest.mark.skipif(
    not TRACES_TRANSFORMS, reason=f"Dynamo of torch {torch.__version__} fails on torch.func here"
)
@pytest.mark.parametrize("op", OPS)
def test_where_graph_breaks_are_allowed_transforms_run_eagerly(op: str) -> None:
    function, x = derivatives(op)["grad"], sample(op).tensors["x"]
    assert torch.equal(torch.compile(function, backend="aot_eager")(x), function(x))


@pytest.mark.parametrize("op", OPS)
def test_vmap_within_compiled_code(op: str) -> None:
    samples = [sample(op, seed=seed).tensors for seed in range(3)]
    tensors = {name: torch.stack([t[name] for t in samples]) for name in samples[0]}
    compiled = torch.compile(torch.func.vmap(Doubled(op)), fullgraph=True, backend="aot_eager")
    for y, alone in zip(compiled(tensors), samples, strict=True):
        assert_close(y, Doubled(op)(alone))
