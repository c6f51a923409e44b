"""TokenFuser (Ryoo et al., 2106.11297) on fused operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from jair import convert
from jair._checks import fits_parameters, whole_numbers
from jair._configured import Configured, mlp_parameters, reset_mlp
from jair_kernels import _checks as check
from jair_kernels import fused_tokenfuser

if TYPE_CHECKING:
    from typing_extensions import Self


class TokenFuser(Configured):
    """Write K processed tokens back to N positions, weighted by what each position looks like.

        t = norm_mixed(mix(norm_tokens(tokens)))        (mix runs over the K tokens, for each channel alike)
        y[b,n] = sum_k sigmoid(fc2(gelu(fc1(norm(original)))))[b,n,k] t[b,k]

    with the tanh GELU. The caller adds the residual: ``x = x + fuser(tokens, x)``. The second line is one
    call of `jair_kernels.fused_tokenfuser`, which reads the parameters of `norm`, `fc1` and `fc2`; hooks on
    these three do not run.

    Args:
        dim: width D. num_tokens: K. bottleneck_dim: hidden width H of the MLP.
        eps: added to the variance in the three LayerNorms.

    Starts as the authors' code does: zeros in `mix` and in all biases, which makes the output zero, and
    Xavier-uniform kernels in the MLP.
    """

    arguments = ("dim", "num_tokens", "bottleneck_dim", "eps")

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        bottleneck_dim: int = 64,
        *,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        whole_numbers(dim=dim, num_tokens=num_tokens, bottleneck_dim=bottleneck_dim)
        check.positive("eps", eps)
        self.dim, self.num_tokens, self.bottleneck_dim, self.eps = dim, num_tokens, bottleneck_dim, eps
        self.norm_tokens = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.mix = nn.Linear(num_tokens, num_tokens, device=device, dtype=dtype)
        self.norm_mixed = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.fc1 = nn.Linear(dim, bottleneck_dim, device=device, dtype=dtype)
        self.fc2 = nn.Linear(bottleneck_dim, num_tokens, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        for norm in (self.norm_tokens, self.norm_mixed, self.norm):
            norm.reset_parameters()
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)
        reset_mlp(self.fc1, self.fc2)

    def forward(self, tokens: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Distribute tokens [B,K,D] over the positions of original [B,N,D], into [B,N,D].

        Raises:
            TypeError: a wrong type or dtype. ValueError: a wrong shape, device or layout.
        """
        check.main_input("original", original, "B N D")
        fits_parameters("original", original, self.norm.weight)
        sizes = (original.shape[0], self.num_tokens, self.dim)
        autocast = check.autocast_dtype(original) is not None
        check.operand("tokens", tokens, "B K D", sizes, original, mixed=autocast)
        mixed = self.mix(self.norm_tokens(tokens).transpose(1, 2)).transpose(1, 2)
        return fused_tokenfuser(
            original,
            self.norm_mixed(mixed),
            *mlp_parameters(self),
            eps=self.eps,
            norm_weight=self.norm.weight,
            norm_bias=self.norm.bias,
        )

    @classmethod
    def from_flax(cls, params: Mapping[str, Any]) -> Self:
        """From the parameters of scenic's TokenFuser, a nested dict of arrays.

        Errors as in `TokenLearner.from_flax`.
        """
        return cls._from_state(convert.flax_token_fuser(params))
