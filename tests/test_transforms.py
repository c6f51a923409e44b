"""Autocast, torch.func, and the derivatives that the kernels do not have."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from op_samples import MASKED, OPS, Call, assert_close, sample

from jair_kernels import _library

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

Tensors = dict[str, torch.Tensor]
LOW = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    """vmap warns when it falls back to a loop, autograd when an op has no derivative: neither may happen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def loss(y: torch.Tensor) -> torch.Tensor:
    return y.square().sum()


# Autocast


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_gives_its_dtype_and_gradients_in_the_inputs_own(
    op: str, dtype: torch.dtype, backend: str
) -> None:
    call = sample(op).requiring_grad()
    with torch.autocast("cpu", dtype):
        y = call(backend=backend)
    assert y.dtype == dtype
    assert_close(y, call.reference(), 0.02)
    loss(y.float()).backward()
    for name, tensor in call.differentiable().items():
        assert tensor.grad.dtype == torch.float32, name


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", LOW)
def test_autocast_saves_the_parameters_themselves(op: str, dtype: torch.dtype) -> None:
    call = sample(op, d=20).requiring_grad()
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autocast("cpu", dtype), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(backend="cpu")
    kept = {t.data_ptr() for t in saved}
    for name, tensor in call.tensors.items():
        assert tensor.data_ptr() in kept, f"{name}: a copy was saved"
    copies = [t for t in saved if t.dtype == dtype]
    assert all(tuple(t.shape) == (2, 7, 5) for t in copies), "nothing in low precision but h [B,N,H]"


@pytest.mark.parametrize("op", OPS)
def test_autocast_leaves_float64_alone_and_can_be_switched_off(op: str) -> None:
    call, double = sample(op), sample(op, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert double(backend="cpu").dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(call(backend="cpu"), sample(op)(backend="cpu"))
            assert call(backend="cpu").dtype == torch.float32


@pytest.mark.parametrize("op", OPS)
def test_autocast_is_the_same_as_casting_x(op: str) -> None:
    """Low-precision tokens beside float32 parameters: what autocast computes, spelled out."""
    call = sample(op)
    low = {n: t.bfloat16() if n in ("x", "scores", "tokens") else t for n, t in call.tensors.items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(backend="cpu"), call(backend="cpu", **low))


@pytest.mark.parametrize("op", OPS)
def test_the_backward_may_run_under_autocast(op: str) -> None:
    inside, outside = sample(op).requiring_grad(), sample(op).requiring_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss(inside(backend="cpu").float()).backward()
        y = outside(backend="cpu")
    loss(y.float()).backward()
    for name in inside.tensors:
        assert torch.equal(inside.tensors[name].grad, outside.tensors[name].grad), name


# torch.func


def names_and_tensors(call: Call) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...]]:
    tensors = call.differentiable()
    return tuple(tensors), tuple(tensors.values())


def of_tensors(call: Call, backend: str) -> Callable[..., torch.Tensor]:
    names, _ = names_and_tensors(call)
    return lambda *tensors: call(**dict(zip(names, tensors, strict=True)), backend=backend)


@pytest.mark.parametrize("op", OPS)
def test_func_grad(op: str) -> None:
    call = sample(op, dtype=torch.float64)
    names, tensors = names_and_tensors(call)
    every = tuple(range(len(tensors)))
    got, want = (
        torch.func.grad(lambda *t, b=backend: loss(of_tensors(call, b)(*t)), every)(*tensors)
        for backend in ("cpu", "reference")
    )
    for name, a, b in zip(names, got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-10), name


def stacked(op: str, vary: str, samples: int = 3) -> tuple[list[Tensors], Tensors, dict[str, int | None]]:
    """Calls of one sample each; their tensors, stacked where they vary ("inputs", "all"); vmap's in_dims."""
    calls = [sample(op, masked=op in MASKED, dtype=torch.float64, seed=s).tensors for s in range(samples)]
    varying = {n for n in calls[0] if vary == "all" or n in ("x", "scores", "tokens")}
    each = [{n: t if n in varying else calls[0][n] for n, t in one.items()} for one in calls]
    tensors = {n: torch.stack([one[n] for one in each]) if n in varying else each[0][n] for n in each[0]}
    return each, tensors, {n: 0 if n in varying else None for n in tensors}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("vary", ["inputs", "all"])
def test_vmap(op: str, vary: str) -> None:
    each, tensors, dims = stacked(op, vary)

    def one(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return Call(op, tensors, {})(backend="cpu")

    got = torch.func.vmap(one, in_dims=(dims,))(tensors)
    for y, alone in zip(got, each, strict=True):
        assert torch.allclose(y, one(alone), atol=1e-12)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("vary", ["inputs", "all"])
def test_per_sample_gradients(op: str, vary: str) -> None:
    each, tensors, dims = stacked(op, vary)

    def gradient(tensors: dict[str, torch.Tensor], backend: str = "cpu") -> dict[str, torch.Tensor]:
        masks = {n: t for n, t in tensors.items() if n == "mask"}
        floats = {n: t for n, t in tensors.items() if n != "mask"}
        return torch.func.grad(lambda f: loss(Call(op, {**f, **masks}, {})(backend=backend)))(floats)

    got = torch.func.vmap(gradient, in_dims=(dims,))(tensors)
    for i, alone in enumerate(each):
        want = gradient(alone, "reference")
        assert set(got) == set(want)
        for name in want:
            assert torch.allclose(got[name][i], want[name], atol=1e-10), name


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("vary", ["inputs", "all"])
def test_vmap_over_no_samples(op: str, vary: str) -> None:
    each, tensors, dims = stacked(op, vary, samples=1)
    none = {name: t if dims[name] is None else t[:0] for name, t in tensors.items()}
    y = torch.func.vmap(lambda t: Call(op, t, {})(backend="cpu"), in_dims=(dims,))(none)
    assert y.shape == (0, *Call(op, each[0], {})().shape)


@pytest.mark.parametrize("op", OPS)
def test_gradient_of_a_vmap_and_batched_gradients(op: str) -> None:
    each, tensors, dims = stacked(op, "inputs")
    x = tensors["x"].requires_grad_()
    y = torch.func.vmap(lambda t: Call(op, t, {})(backend="cpu"), in_dims=(dims,))(tensors)
    loss(y).backward()
    for i, alone in enumerate(each):
        own = alone["x"].clone().requires_grad_()
        loss(Call(op, {**alone, "x": own}, {})(backend="reference")).backward()
        assert torch.allclose(x.grad[i], own.grad, atol=1e-10)
    call = sample(op).requiring_grad()
    y = call(backend="cpu")
    dy = torch.randn(4, *y.shape)
    batched = torch.autograd.grad(y, call.tensors["x"], dy, is_grads_batched=True, retain_graph=True)[0]
    for i in range(4):
        assert_close(batched[i], torch.autograd.grad(y, call.tensors["x"], dy[i], retain_graph=True)[0])


# What the kernels do not have: a second derivative and forward mode


def second(op: str) -> str:
    return (
        f"{op}: expected to be differentiated once, got a double backward; "
        "backend='reference' can be differentiated again"
    )


def forward(op: str) -> str:
    return (
        f"{op}: expected reverse-mode differentiation, got forward mode (a dual tensor, jvp or jacfwd); "
        "backend='reference' has both"
    )


def assert_refused(message: str, function: Callable[[], Any]) -> None:
    with pytest.raises(NotImplementedError) as error:
        function()
    assert str(error.value) == message


@pytest.mark.parametrize("op", OPS)
def test_double_backward_is_refused(op: str) -> None:
    for name in sample(op).tensors:
        call = sample(op).requiring_grad()
        tensor = call.tensors[name]
        (grad,) = torch.autograd.grad(loss(call(backend="cpu")), tensor, create_graph=True)
        assert_refused(second(op), lambda g=grad: g.sum().backward())
        x = call.tensors["x"]
        (grad,) = torch.autograd.grad(loss(call(backend="cpu")), tensor, create_graph=True)
        assert_refused(second(op), lambda g=grad, x=x: torch.autograd.grad(g.sum(), x, allow_unused=True))


@pytest.mark.parametrize("op", OPS)
def test_create_graph_alone_changes_nothing(op: str) -> None:
    call = sample(op).requiring_grad()
    tensors = list(call.tensors.values())
    plain = torch.autograd.grad(loss(call(backend="cpu")), tensors)
    recorded = torch.autograd.grad(loss(call(backend="cpu")), tensors, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives_of_torch_func_are_refused(op: str) -> None:
    call = sample(op)
    x = call.tensors["x"]

    def value(x: torch.Tensor) -> torch.Tensor:
        return loss(call(x=x, backend="cpu"))

    assert_refused(second(op), lambda: torch.func.grad(lambda x: torch.func.grad(value)(x).sum())(x))
    assert_refused(second(op), lambda: torch.autograd.functional.hessian(value, x))
    assert_refused(
        second(op), lambda: torch.autograd.functional.jvp(lambda x: call(x=x, backend="cpu"), (x,), (x,))
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("recording", [False, True])
def test_forward_mode_is_refused(op: str, recording: bool) -> None:
    for name, tensor in sample(op).tensors.items():
        call = sample(op)
        with torch.set_grad_enabled(recording), fwAD.dual_level():
            dual = fwAD.make_dual(tensor, torch.ones_like(tensor))
            assert_refused(
                forward(op), lambda name=name, dual=dual, call=call: call(**{name: dual}, backend="cpu")
            )


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_of_torch_func_is_refused(op: str) -> None:
    call = sample(op)
    x = call.tensors["x"]

    def value(x: torch.Tensor) -> torch.Tensor:
        return call(x=x, backend="cpu")

    assert_refused(forward(op), lambda: torch.func.jvp(value, (x,), (x,)))
    assert_refused(forward(op), lambda: torch.func.jacfwd(value)(x))
    assert_refused(forward(op), lambda: torch.func.hessian(lambda x: loss(value(x)))(x))


@pytest.mark.parametrize("op", OPS)
def test_a_dual_level_without_dual_tensors_is_harmless(op: str) -> None:
    call = sample(op)
    with fwAD.dual_level():
        y = call(backend="cpu")
    assert torch.equal(y, call(backend="cpu"))


@pytest.mark.parametrize("op", OPS)
def test_the_reference_has_all_derivatives(op: str) -> None:
    """What the messages promise."""
    call = sample(op, b=1, n=3, d=4, h=3, k=2, dtype=torch.float64)
    tensors = tuple(t.requires_grad_() for t in call.tensors.values())
    function = of_tensors(call, "reference")
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=False)
    assert torch.autograd.gradgradcheck(function, tensors)
