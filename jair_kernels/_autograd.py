"""What the autograd functions of all ops share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

Gradients = tuple[torch.Tensor | None, ...]


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """tensor.to(dtype) without its cost, a microsecond, where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def grads_like(
    grads: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor | None], needed: Sequence[bool]
) -> Gradients:
    """A kernel's gradients, each in its input's own dtype; None where nobody asked or the input is absent.

    Kernels return those of parameters so, and an empty one for an absent parameter.
    """
    triples = zip(grads, inputs, needed, strict=True)
    return tuple(None if t is None or not need else cast(grad, t.dtype) for grad, t, need in triples)


def take_saved(ctx: Any) -> tuple[Any, ...]:
    """`ctx.saved_tensors`, which the graph lets go of unless it is kept (retain_graph).

    A backward of many steps then needs less at once, if it deletes what it is through with.
    """
    saved: tuple[Any, ...] = ctx.saved_tensors
    if not torch.compiler.is_compiling():
        ctx.maybe_clear_saved_tensors()
    return saved


class _Read:
    """A context whose saved tensors have been read: a checkpoint computes them for one reading."""

    def __init__(self, ctx: Any, saved: tuple[Any, ...]) -> None:
        self._ctx, self.saved_tensors = ctx, saved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def maybe_clear_saved_tensors(self) -> None:
        """They are still needed, to refuse a second derivative."""


def without_autocast(tensors: Iterable[object]) -> AbstractContextManager[Any]:
    """An op chooses the dtype of its products when it is called. Autocast would choose once more, and may be
    on around the backward alone.
    """
    device = next((t.device.type for t in tensors if isinstance(t, torch.Tensor)), "meta")
    if device == "meta" or not (torch.compiler.is_compiling() or torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels keep statistics and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def like_parameter(parameter: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Fake gradient of a parameter, as the kernels return it."""
    if parameter is None:
        return x.new_empty((0,), dtype=accumulate_dtype(x.dtype))
    return torch.empty_like(parameter, memory_format=torch.contiguous_format)


class _Refuse(torch.autograd.Function):
    """Passes the first `count` tensors through and hangs on all of them; its backward refuses."""

    generate_vmap_rule = True

    @staticmethod
    def forward(op: str, count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Gradients:
        raise NotImplementedError(
            f"{ctx.op}: expected to be differentiated once, got a double backward; "
            "backend='reference' can be differentiated again"
        )


def differentiable_once(op: str) -> Callable[[Callable[..., Gradients]], Callable[..., Gradients]]:
    """Decorates a backward: differentiating its result raises an error that names the op.

    torch's `once_differentiable` ties its error to detached copies, so `torch.autograd.grad` reports an
    unused input or None, and under `torch.func` a second derivative is silently zero. Here the gradients
    hang on all that they depend on. It costs nothing unless the backward is recorded (create_graph=True).
    """

    refuse: Any = _Refuse

    def decorate(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
        @functools.wraps(backward)
        def once(ctx: Any, *dy: torch.Tensor | None) -> Gradients:
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                with without_autocast(dy):
                    return backward(ctx, *dy)
            saved = ctx.saved_tensors
            sources = [t for t in (*dy, *saved) if t is not None]
            with torch.no_grad(), without_autocast(dy):
                grads = backward(_Read(ctx, saved), *dy)
            present = [grad for grad in grads if grad is not None]
            refused = iter(refuse.apply(op, len(present), *present, *sources))
            return tuple(None if grad is None else next(refused) for grad in grads)

        return once

    return decorate


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _differentiating() -> bool:
    """Whether torch.func is taking derivatives (a vmap alone is harmless).

    A constant while Dynamo traces, which enters the transforms that it meets and guards on those around it.
    """
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() in (TransformType.Grad, TransformType.Jvp) for level in stack)


class Differentiable:
    """The call of an op's autograd function, paying for `Function.apply` only where it is needed.

    `apply` adds 25 us to a kernel of 4 us, most of it to bind default arguments. So an eager call that
    records nothing runs the forward alone, and one that records enters torch below the binding. Under
    `torch.compile` the plain function is applied, because Dynamo takes none that defines `jvp`; everywhere
    else `jvp` makes forward-mode differentiation an error that names the op.

    `tells`: the function's last argument is whether the call is recorded.
    """

    def __init__(self, op: str, function: Any, *, tells: bool = False) -> None:
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise NotImplementedError(
                f"{op}: expected reverse-mode differentiation, got forward mode (a dual tensor, jvp or "
                "jacfwd); backend='reference' has both"
            )

        members = {"jvp": staticmethod(jvp), "__doc__": function.__doc__}
        self.op = op
        self.traced = function
        self.recorded: tuple[bool, ...] = (True,) if tells else ()
        self.unrecorded: tuple[bool, ...] = (False,) if tells else ()
        self.eager: Any = type(function.__name__, (function,), members)
        self.record = super(torch.autograd.Function, self.eager).apply  # type: ignore[misc]

    def __call__(self, *args: Any) -> Any:
        with without_autocast(args):
            return self._call(*args)

    def _call(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            if _differentiating() or forward_ad._current_level >= 0:  # Dynamo would lose the derivative
                raise NotImplementedError(
                    f"{self.op}: expected torch.func and forward mode outside of torch.compile, "
                    "got one within"
                )
            # Where nothing is recorded Dynamo counts the arguments of an apply, which it cannot for *args.
            tensors = (a for a in args if isinstance(a, torch.Tensor))
            recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
            if recorded:
                return self.traced.apply(*args, *self.recorded)
            return self.traced.forward(*args, *self.unrecorded)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return self.eager.apply(*args, *self.recorded)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return self.record(*args, *self.recorded)
        return self.traced.forward(*args, *self.unrecorded)
