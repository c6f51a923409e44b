"""The Triton kernels of the pooling ops in triton's interpreter, against float64 references."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from interpreter import interpreted, outside, repaired, run_interpreted  # noqa: F401 - a fixture

import jair_kernels as jk

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Tensors = tuple[torch.Tensor, ...]


@outside
def test_in_the_interpreter() -> None:
    assert run_interpreted(__file__) >= 20


def run(
    call: Callable[..., torch.Tensor], inputs: dict[str, Any], dy: torch.Tensor, **options: Any
) -> Tensors:
    """The output and the gradient of every input that is a tensor."""
    leaves = {name: t if t is None else t.detach().requires_grad_() for name, t in inputs.items()}
    y = call(**leaves, **options)
    wanted = [t for t in leaves.values() if t is not None]
    return (y.detach(), *torch.autograd.grad(y, wanted, dy.to(y.dtype)))


def check(name: str, inputs: dict[str, Any], dy: torch.Tensor, **options: Any) -> None:
    """Error <= 2 x that of plain PyTorch in the same dtype + a few ulp, and the same bits twice."""
    fused, reference = getattr(jk, f"fused_{name}"), getattr(jk.reference, name)
    got = run(fused, inputs, dy, backend="triton", **options)
    again = run(fused, inputs, dy, backend="triton", **options) if got[0].dtype == torch.float32 else got
    plain = run(reference, inputs, dy, **options)
    wide = {key: None if t is None else t.double() for key, t in inputs.items()}
    exact = run(reference, wide, dy.double(), **options)
    eps = torch.finfo(got[0].dtype).eps
    names = ["y", *(f"d{key}" for key, t in inputs.items() if t is not None)]
    # A gradient that is 0 (that of b2, which the softmax does not see) is a sum of terms as large as the
    # others'.
    largest = max(float(t.norm()) for t in exact[1:])
    for what, a, twice, p, e in zip(names, got, again, plain, exact, strict=True):
        assert torch.equal(a, twice), f"{what} differs between two runs"
        assert (a.dtype, a.shape) == (p.dtype, p.shape), what
        size = float(e.norm())
        floor = 4 * eps * (size if size > 1e-12 * largest else largest)
        error, allowed = (float((t.double() - e).norm()) for t in (a, p))
        assert error <= 2 * allowed + floor, (
            f"{what}: error {error:.3g}, PyTorch's own {allowed:.3g}, norm {size:.3g}"
        )


def mlp(d: int, h: int, k: int, dtype: torch.dtype, without: str) -> dict[str, torch.Tensor | None]:
    """Parameters of the score MLP; `without` names those that are None."""
    generator = torch.Generator().manual_seed(d + h + k)

    def normal(*size: int, mean: float = 0.0, std: float = 0.3) -> torch.Tensor:
        return (mean + std * torch.randn(*size, generator=generator)).to(dtype)

    parameters = {
        "w1": normal(h, d, std=d**-0.5),
        "b1": normal(h),
        "w2": normal(k, h, std=2 * h**-0.5),
        "b2": normal(k),
        "norm_weight": normal(d, mean=1.0),
        "norm_bias": normal(d),
    }
    return {name: None if name in without.split() else value for name, value in parameters.items()}


def tokens(b: int, n: int, d: int, dtype: torch.dtype, mean: float = 0.5, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (mean + torch.randn(b, n, d, generator=generator)).to(dtype)


def some_mask(b: int, n: int) -> torch.Tensor:
    """About half of the tokens; nothing of the first image."""
    mask = torch.rand(b, n, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[0] = False
    return mask


ALL = "b1 b2 norm_weight norm_bias"
LEARNER = [  # n, k, d, h, without, masked, approximate
    (1, 8, 48, 8, "", False, "tanh"),
    (7, 1, 16, 20, "norm_bias", True, "none"),
    (33, 8, 48, 20, "", True, "tanh"),
    (33, 17, 100, 20, ALL, False, "none"),
    (70, 8, 48, 72, "norm_weight", True, "tanh"),
]


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k", "d", "h", "without", "masked", "approximate"), LEARNER)
def test_tokenlearner(
    n: int, k: int, d: int, h: int, without: str, masked: bool, approximate: str, dtype: torch.dtype
) -> None:
    inputs = {"x": tokens(2, n, d, dtype), **mlp(d, h, k, dtype, without)}
    dy = tokens(2, k, d, dtype, mean=0.0, seed=3)
    check("tokenlearner", inputs, dy, mask=some_mask(2, n) if masked else None, approximate=approximate)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "k", "d", "h", "without", "masked", "approximate"), [c for c in LEARNER if c[0] != 1]
)
def test_tokenfuser(
    n: int, k: int, d: int, h: int, without: str, masked: bool, approximate: str, dtype: torch.dtype
) -> None:
    inputs = {
        "x": tokens(2, n, d, dtype),
        "tokens": tokens(2, k, d, dtype, seed=4),
        **mlp(d, h, k, dtype, without),
    }
    check("tokenfuser", inputs, tokens(2, n, d, dtype, mean=0.0, seed=3), approximate=approximate)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighting", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("n", "k", "d", "masked", "reduction"), [
    (1, 8, 16, False, "sum"), (7, 1, 48, True, "mean"), (33, 17, 100, True, "sum"), (150, 8, 48, False,
    "mean"),
])  # fmt: skip
def test_token_pool(
    n: int, k: int, d: int, masked: bool, reduction: str, weighting: str, dtype: torch.dtype
) -> None:
    inputs = {"x": tokens(2, n, d, dtype), "scores": tokens(2, n, k, dtype, mean=0.0, seed=5)}
    mask = some_mask(2, n) if masked else None
    dy = tokens(2, k, d, dtype, mean=0.0, seed=3)
    check("token_pool", inputs, dy, mask=mask, reduction=reduction, weighting=weighting)


@interpreted
def test_one_token_gives_its_scores_exactly_no_gradient() -> None:
    inputs = {"x": tokens(3, 1, 48, torch.float32), **mlp(48, 20, 8, torch.float32, "")}
    y, dx, *gradients = run(jk.fused_tokenlearner, inputs, torch.ones(3, 8, 48), backend="triton")
    assert torch.equal(y, inputs["x"].expand(3, 8, 48))
    assert torch.equal(dx, torch.full_like(dx, 8))
    assert all(not g.any() for g in gradients)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_in_masked_tokens_goes_nowhere(dtype: torch.dtype) -> None:
    mask = some_mask(2, 33)
    x = tokens(2, 33, 48, dtype)
    poisoned = x.masked_fill(~mask.unsqueeze(-1), float("nan"))
    parameters, dy = mlp(48, 20, 8, dtype, ""), tokens(2, 8, 48, dtype, seed=3)
    clean, dirty = (
        run(jk.fused_tokenlearner, {"x": t, **parameters}, dy, mask=mask, backend="triton")
        for t in (x, poisoned)
    )
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    assert not clean[0][0].any()
    assert not clean[1][~mask].any()


@interpreted
@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_strided_tokens(layout: str) -> None:
    b, n, d = 2, 33, 48
    x = {
        "sliced": tokens(b, 2 * n, 2 * d, torch.float32)[:, ::2, :d],
        "transposed": tokens(b, d, n, torch.float32).transpose(1, 2),
        "expanded": tokens(1, n, d, torch.float32).expand(b, n, d),
    }[layout]
    parameters = mlp(d, 20, 8, torch.float32, "")
    arguments, dy = {"x": x, **parameters}, tokens(8, b, d, torch.float32, seed=3).transpose(0, 1)
    got = run(jk.fused_tokenlearner, arguments, dy, backend="triton")
    packed = run(jk.fused_tokenlearner, {"x": x.contiguous(), **parameters}, dy, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(got, packed, strict=True))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_far_from_zero(dtype: torch.dtype) -> None:
    inputs = {"x": tokens(2, 33, 48, dtype, mean=100.0), **mlp(48, 20, 8, dtype, "")}
    check("tokenlearner", inputs, tokens(2, 8, 48, dtype, mean=0.0, seed=3))


@interpreted
def test_autocast_takes_float32_parameters() -> None:
    inputs = {"x": tokens(2, 33, 48, torch.float32), **mlp(48, 20, 8, torch.float32, "")}
    with torch.autocast("cpu", torch.bfloat16):
        y, *gradients = run(jk.fused_tokenlearner, inputs, torch.ones(2, 8, 48), backend="triton")
    assert y.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in gradients)
    exact = jk.reference.tokenlearner(**inputs)
    assert float((y - exact).norm() / exact.norm()) < 2**-7


@interpreted
def test_an_empty_batch_gives_zero_gradients() -> None:
    inputs = {"x": tokens(0, 7, 48, torch.float32), **mlp(48, 20, 8, torch.float32, "b1")}
    y, dx, *gradients = run(jk.fused_tokenlearner, inputs, torch.ones(0, 8, 48), backend="triton")
    assert y.shape == (0, 8, 48)
    assert dx.shape == (0, 7, 48)
    assert all(not g.any() for g in gradients)


@interpreted
def test_too_many_outputs_are_refused() -> None:
    x, scores = tokens(1, 4, 16, torch.float32), tokens(1, 4, 257, torch.float32)
    with pytest.raises(ValueError, match="it takes up to 256 output tokens, got 257"):
        jk.fused_token_pool(x, scores, backend="triton")


def test_import_leaves_the_kernels_and_the_driver_alone() -> None:
    script = (
        "import sys, torch, jair_kernels;"
        "kernels = [m for m in sys.modules if m.startswith('jair_kernels.') and m.endswith('.triton')];"
        "print(torch.cuda.is_initialized(), kernels);"
        "print(torch.ops.jair_kernels.tokenlearner_forward_triton.default)"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, env=environment, timeout=120, capture_output=True, text=True)
    assert done.stdout == "False []\njair_kernels.tokenlearner_forward_triton.default\n"
