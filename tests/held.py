"""Holds a composition of ops to the code of a model: values and every gradient, in float64."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jair_kernels as jk

Tensor = torch.Tensor
Leaves = dict[str, Tensor]


def backends(*ops: str) -> Any:
    """Parametrises `backend` over "reference" and "cpu" where all these ops have it; a skip says why not."""
    out = []
    for backend in ("reference", "cpu"):
        reasons = [reason for op in ops if (reason := jk.why_not(op, backend)) is not None]
        out.append(pytest.param(backend, marks=[pytest.mark.skip(reason=reason) for reason in reasons[:1]]))
    return pytest.mark.parametrize("backend", out)


def methods() -> Any:
    """Parametrises `backend, method` over what fused_latent_resample can do."""
    out = [pytest.param("reference", "auto", id="reference")]
    reason = jk.why_not("fused_latent_resample", "cpu")
    marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
    out += [pytest.param("cpu", m, marks=marks, id=f"cpu-{m}") for m in ("projected", "absorbed", "auto")]
    return pytest.mark.parametrize(("backend", "method"), out)


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(module: nn.Module) -> nn.Module:
    """The module in float64, every parameter drawn anew: biases and norms' weights start at 0 and 1."""
    module = module.double().eval()
    make = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            draw = torch.randn(parameter.shape, generator=make, dtype=torch.float64) * scale
            parameter.copy_(draw + (parameter.ndim == 1))
    return module


def leaves(module: nn.Module, **inputs: Tensor) -> Leaves:
    """What gradients are taken of: the module's parameters, and inputs, which must require them."""
    return {name: t.requires_grad_() for name, t in inputs.items()} | dict(module.named_parameters())


def linears(module: nn.Module) -> list[nn.Linear]:
    """In the order of definition, which outlives the names of submodules."""
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def norms(module: nn.Module) -> list[nn.LayerNorm]:
    return [m for m in module.modules() if isinstance(m, nn.LayerNorm)]


def assert_held(
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    of: Leaves,
    *,
    keep: Tensor | None = None,
    limit: float = 1e-12,
) -> None:
    """Both functions of the same leaves agree to rounding, in value and in the gradient of each leaf.

    keep: bool [B,L], the rows of the output that mean something.
    """
    results = []
    for function in (ours, theirs):
        y = function()
        rows = torch.ones_like(y) if keep is None else keep.unsqueeze(-1).expand_as(y).to(y.dtype)
        dy = normal(*y.shape, seed=99) * rows
        grads = torch.autograd.grad(y, list(of.values()), dy)
        results.append({"y": (y * rows).detach()} | {f"d{n}": g for n, g in zip(of, grads, strict=True)})
    for name, want in results[1].items():
        got = results[0][name]
        assert got.shape == want.shape, name
        assert got.dtype == want.dtype == torch.float64, name
        error, size = float((got - want).norm()), float(want.norm())
        # A bias of k has no gradient but rounding, hence the floor; NaN fails.
        assert error <= limit * (size + 0.1), f"{name}: error {error:.2e} of {size:.2e}"


def model_code(path: str, *names: str) -> ModuleType:
    """A module of transformers that defines these names, or a skip that says what is missing."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        pytest.skip(f"this transformers has no {path}: {error}", allow_module_level=True)
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        pytest.skip(f"{path} of this transformers has no {', '.join(missing)}", allow_module_level=True)
    return module


def takes(function: Callable[..., Any], *names: str) -> None:
    """Skips where a signature is of another version."""
    missing = [name for name in names if name not in inspect.signature(function).parameters]
    if missing:
        pytest.skip(f"{function.__qualname__} of this transformers takes no {', '.join(missing)}")


@contextmanager
def wide_softmax() -> Iterator[None]:
    """Eager attention of transformers takes its softmax in float32; here it keeps the dtype of the scores."""
    softmax = F.softmax

    def kept(scores: Tensor, dim: int | None = None, **options: Any) -> Tensor:
        return softmax(scores, dim=dim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "softmax", kept)
        yield


def additive(keep: Tensor) -> Tensor:
    """[B,N] True = keep as transformers adds it to scores, [B,1,1,N]."""
    lowest = torch.finfo(torch.float64).min
    return torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, lowest)[:, None, None]


def padded(lengths: Sequence[int], n: int) -> Tensor:
    """bool [B,N]: the first `lengths` tokens are kept."""
    return torch.arange(n) < torch.tensor(lengths).unsqueeze(1)
