"""One small call of every op, for the tests of what surrounds the kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import jair_kernels

OPS = ("fused_tokenlearner", "fused_token_pool", "fused_tokenfuser")
NAMES = {
    "fused_tokenlearner": "tokenlearner",
    "fused_token_pool": "token_pool",
    "fused_tokenfuser": "tokenfuser",
}
MASKED = ("fused_tokenlearner", "fused_token_pool")


class Call(NamedTuple):
    """An op with arguments: `tensors` by name, in the order of the signature, and `options`."""

    op: str
    tensors: dict[str, torch.Tensor]
    options: dict[str, Any]

    def __call__(self, **changes: Any) -> torch.Tensor:
        return getattr(jair_kernels, self.op)(**{**self.tensors, **self.options, **changes})

    def reference(self, **changes: Any) -> torch.Tensor:
        return getattr(jair_kernels.reference, NAMES[self.op])(**{**self.tensors, **self.options, **changes})

    def differentiable(self) -> dict[str, torch.Tensor]:
        return {name: t for name, t in self.tensors.items() if t.is_floating_point()}

    def requiring_grad(self) -> Call:
        tensors = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in self.tensors.items()}
        return Call(self.op, tensors, self.options)


def sample(
    op: str, b: int = 2, n: int = 7, d: int = 12, h: int = 5, k: int = 3, *,
    dtype: torch.dtype = torch.float32, masked: bool = False, seed: int = 0,
) -> Call:  # fmt: skip
    """A call with every optional tensor present; the first token of every image is masked out if `masked`."""
    make = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        return (torch.randn(sizes, generator=make, dtype=torch.float64) * scale + shift).to(dtype)

    tensors = {"x": normal(b, n, d)}
    if op == "fused_token_pool":
        tensors["scores"] = normal(b, n, k)
    else:
        if op == "fused_tokenfuser":
            tensors["tokens"] = normal(b, k, d)
        tensors |= {"w1": normal(h, d, scale=d**-0.5), "b1": normal(h), "w2": normal(k, h), "b2": normal(k)}
        tensors |= {"norm_weight": normal(d, scale=0.1, shift=1.0), "norm_bias": normal(d, scale=0.1)}
    if masked:
        keep = torch.ones(b, n, dtype=torch.bool)
        keep[:, 0] = False
        tensors["mask"] = keep
    return Call(op, tensors, {})


def assert_close(got: torch.Tensor, want: torch.Tensor, limit: float = 1e-5) -> None:
    """Relative Frobenius distance; the kernels' accuracy is tested per op, here a right answer is enough."""
    assert got.shape == want.shape
    error = (got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30)
    assert error <= limit, f"relative error {error:.2e} > {limit:.0e}"
