"""When an operator's function is called past the dispatcher, and when torch has to see the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from jair_kernels._direct import direct

X = torch.randn(2, 3)
MASK = torch.ones(2, dtype=torch.bool)


class Subclass(torch.Tensor):
    """A tensor that may mean anything."""


def path(call: Callable[[Any], object]) -> str:
    """ "operator" or "function": what `call` of a direct function has run."""
    ran = []

    def run(name: str) -> Callable[..., torch.Tensor]:
        def body(x: torch.Tensor, *rest: object) -> torch.Tensor:
            ran.append(name)
            return x

        return body

    call(direct(run("operator"), run("function")))
    return ran[0]


@pytest.mark.parametrize(
    "x",
    [X, torch.nn.Parameter(X, requires_grad=False), torch.nn.Parameter(X)],
    ids=["tensor", "frozen", "own"],
)
def test_plain_tensors_need_no_dispatcher(x: torch.Tensor) -> None:
    with torch.no_grad():
        assert path(lambda run: run(x, None, MASK, 1.0, True)) == "function"
    with torch.inference_mode():
        assert path(lambda run: run(x, x)) == "function"


@pytest.mark.parametrize(
    "x",
    [
        X.as_subclass(Subclass),
        torch.randn(2, 3, dtype=torch.cfloat).conj().imag,
        torch._efficientzerotensor(2, 3),
        X.to("meta"),
    ],
    ids=["subclass", "negative", "zero", "meta"],
)
def test_memory_does_not_tell_the_whole(x: torch.Tensor) -> None:
    assert path(lambda run: run(x, None)) == "operator"
    if x.device.type != "meta":  # which all arguments of a call are, or none
        assert path(lambda run: run(X, None, x)) == "operator"


def test_what_records_sees_the_operator() -> None:
    wanted = X.clone().requires_grad_()
    assert path(lambda run: run(X, wanted)) == "operator"
    with torch.no_grad():
        assert path(lambda run: run(X, wanted)) == "function"


def counted(run: Any) -> None:
    """A call within a mode."""
    with FlopCounterMode(display=False):
        run(X)


@pytest.mark.parametrize(
    "around",
    [
        lambda run: torch.func.vmap(run)(X),
        lambda run: torch.func.functionalize(run)(X),
        lambda run: make_fx(run)(X),
        lambda run: torch.jit.trace(run, (X,), check_trace=False),
        counted,
    ],
    ids=["vmap", "functionalize", "make_fx", "jit", "mode"],
)
def test_what_looks_on_sees_the_operator(around: Callable[[Any], object]) -> None:
    assert path(around) == "operator"


def test_fake_tensors_run_the_fake_kernel() -> None:
    with FakeTensorMode() as mode:
        assert path(lambda run: run(mode.from_tensor(X))) == "operator"
    fake = mode.from_tensor(X)
    assert path(lambda run: run(fake)) == "operator"


def test_compiled_code_has_the_operator() -> None:
    names = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    run = direct(torch.ops.aten.relu.default, lambda x: x)
    compiled = torch.compile(lambda x: run(x) + 1, backend=backend, fullgraph=True)
    assert torch.equal(compiled(X), X.relu() + 1)
    assert "aten.relu.default" in names
