"""An operator's function called past the dispatcher where that changes nothing.

The Python layers of `torch.library` cost more than a kernel of a few microseconds: autograd that an op does
not have, a check for aliases, a function that Dynamo must not trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

PLAIN = (torch.Tensor, torch.nn.Parameter)  # what is neither fake nor traced nor distributed


def watched() -> bool:
    """Whether a transform or a compiler follows the call: then no result may be written into a tensor that is
    there, and where a tensor lies says nothing.
    """
    return torch.compiler.is_compiling() or bool(torch._C._are_functorch_transforms_active())


def alone(args: tuple[Any, ...]) -> bool:
    """Whether nothing stands between a call and its kernel: no transform or mode, no tracer, no gradient to
    record, and no tensor of a subclass or that its memory does not tell the whole of.
    """
    c = torch._C
    if c._len_torch_dispatch_stack() or c._are_functorch_transforms_active() or c._get_tracing_state():
        return False
    if torch.is_grad_enabled() and c._any_requires_grad(*args):
        return False
    for value in args:
        if type(value) in PLAIN:
            if value.is_neg() or value._is_zerotensor():
                return False
        elif isinstance(value, torch.Tensor):
            return False
    return not args[0].is_meta


def direct(operator: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """`operator`, which computes `function`: itself where torch has to see it, else the function alone.

    What is returned has the operator as its attribute `operator`.
    """

    def run(*args: Any) -> Any:
        if not torch.compiler.is_compiling() and alone(args):
            return function(*args)
        return operator(*args)

    run.operator = operator  # type: ignore[attr-defined]
    return run
