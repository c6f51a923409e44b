"""TokenLearner v1.1 and v1 (Ryoo et al., 2106.11297) on fused operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from jair import convert
from jair._attention import softmax_over_kept
from jair._checks import square, whole_numbers
from jair._checks import tokens as as_tokens
from jair._configured import Configured, mlp_parameters, reset_mlp
from jair_kernels import _checks as check
from jair_kernels import fused_token_pool, fused_tokenlearner

if TYPE_CHECKING:
    from typing_extensions import Self


class TokenLearner(Configured):
    """Learn K tokens from N: softmax over the positions of scores that an MLP gives them (version 1.1).

        y[b,k] = sum_n softmax_n(fc2(gelu(fc1(norm(x)))))[b,n,k] x[b,n]        (x itself is not normalised)

    One call of `jair_kernels.fused_tokenlearner`, which reads the parameters of `norm`, `fc1` and `fc2`; the
    submodules hold them under the usual names and are not called, so hooks on them do not run.

    Args:
        dim: width D. num_tokens: K. bottleneck_dim: hidden width H of the MLP.
        approximate: GELU, "tanh" (flax's default) or "none" (erf).
        eps: added to the variance in the LayerNorm.
        channels_first: take [B,D,H,W] instead of [B,N,D] or [B,H,W,D].

    Starts as the authors' code does: Xavier-uniform kernels and zero biases.
    """

    arguments = ("dim", "num_tokens", "bottleneck_dim", "approximate", "eps", "channels_first")

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        bottleneck_dim: int = 64,
        approximate: str = "tanh",
        eps: float = 1e-6,
        *,
        channels_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        whole_numbers(dim=dim, num_tokens=num_tokens, bottleneck_dim=bottleneck_dim)
        check.choice("approximate", approximate, ("tanh", "none"))
        check.positive("eps", eps)
        self.dim, self.num_tokens, self.bottleneck_dim = dim, num_tokens, bottleneck_dim
        self.approximate, self.eps, self.channels_first = approximate, eps, channels_first
        self.norm = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.fc1 = nn.Linear(dim, bottleneck_dim, device=device, dtype=dtype)
        self.fc2 = nn.Linear(bottleneck_dim, num_tokens, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        self.norm.reset_parameters()
        reset_mlp(self.fc1, self.fc2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pool x into [B,K,D].

        Args:
            x: [B,N,D] or [B,H,W,D]; with channels_first [B,D,H,W].
            mask: bool [B,N] or [B,H,W], True = keep; an image without kept tokens gives zeros.

        Raises:
            TypeError: a wrong type or dtype. ValueError: a wrong shape, device or layout.
        """
        tokens = as_tokens(x, self.norm.weight, self.channels_first)
        return fused_tokenlearner(
            tokens,
            *mlp_parameters(self),
            mask=self._row_by_row(mask, x),
            eps=self.eps,
            approximate=self.approximate,
            norm_weight=self.norm.weight,
            norm_bias=self.norm.bias,
        )

    def attention_weights(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What each token looks at: the weights [B,K,N] that pool x, in plain PyTorch; they sum to 1 over N.

        Arguments and errors as in `forward`; positions of a grid are row by row. A masked position has weight
        0, and so have all of an image without kept tokens.
        """
        tokens = as_tokens(x, self.norm.weight, self.channels_first)
        mask = self._row_by_row(mask, x)
        check.key_mask("mask", mask, tokens.shape[:2], tokens)
        hidden = F.gelu(self.fc1(self.norm(tokens)), approximate=self.approximate)
        return softmax_over_kept(self.fc2(hidden).transpose(1, 2), mask)

    def _row_by_row(self, mask: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
        """The mask of a grid as [B,N]; one that does not fit x as it is, to be refused by name."""
        grid = x.shape[2:] if self.channels_first else x.shape[1:-1]
        fits = isinstance(mask, torch.Tensor) and mask.ndim == 3 and mask.shape[1:] == grid
        return mask.flatten(1) if fits and mask is not None else mask

    @classmethod
    def from_flax(cls, params: Mapping[str, Any]) -> Self:
        """From the parameters of scenic's TokenLearnerModuleV11, a nested dict of arrays.

        Raises:
            ValueError: a missing or unknown key, or a wrong shape or dtype, by name.
        """
        return cls._from_state(convert.flax_token_learner(params))

    @classmethod
    def from_rt1(cls, state_dict: Mapping[str, Any], prefix: str = "") -> Self:
        """From the PyTorch ports of RT-1 (``layerNorm``, ``conv1``, ``conv2``); takes [B,D,H,W] as they do.

        `prefix` picks it out of a whole model's state dict, final dot included. Errors as in `from_flax`.
        """
        return cls._from_state(convert.rt1(state_dict, prefix), eps=1e-5, channels_first=True)

    @classmethod
    def from_open_x(cls, state_dict: Mapping[str, Any], prefix: str = "") -> Self:
        """From the PyTorch ports of Open X-Embodiment (``layer_norm``, ``mlp.linear_{1,2}``), erf GELU.

        `prefix` picks it out of a whole model's state dict, final dot included. Errors as in `from_flax`.
        """
        return cls._from_state(convert.open_x(state_dict, prefix), eps=1e-5, approximate="none")


class TokenLearnerV1(Configured):
    """Learn K tokens from a grid, weighted by the sigmoid of what four 3x3 convolutions give (version 1).

        y[b,k] = sum_n sigmoid(conv3(gelu(conv2(gelu(conv1(gelu(conv0(norm(x)))))))))[b,n,k] x[b,n]

    with the tanh GELU. The convolutions keep the grid's size and have no bias and K output channels; x itself
    is not normalised. The pooling is `jair_kernels.fused_token_pool`.

    Args:
        dim: width D. num_tokens: K.
        sum_pooling: sum over the positions as above; False = their mean.
        eps: added to the variance in the LayerNorm.

    Starts with flax's default for kernels, LeCun's normal distribution cut off at two standard deviations.
    """

    arguments = ("dim", "num_tokens", "sum_pooling", "eps")

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        sum_pooling: bool = True,
        *,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        whole_numbers(dim=dim, num_tokens=num_tokens)
        check.positive("eps", eps)
        self.dim, self.num_tokens, self.sum_pooling, self.eps = dim, num_tokens, sum_pooling, eps
        self.norm = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, num_tokens, 3, padding=1, bias=False, device=device, dtype=dtype)
            for channels in (dim, num_tokens, num_tokens, num_tokens)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        self.norm.reset_parameters()
        for kernel in self.convs.parameters():
            _lecun_normal(kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool x, [B,H,W,D] or [B,N,D] with N a square, into [B,K,D].

        Raises:
            TypeError: a wrong type or dtype. ValueError: a wrong shape, device or layout.
        """
        tokens = as_tokens(x, self.norm.weight)
        grid = self.norm(x if x.ndim == 4 else square(x)).movedim(-1, 1)
        *hidden, last = self.convs
        for conv in hidden:
            grid = F.gelu(conv(grid), approximate="tanh")
        scores = last(grid).flatten(2).transpose(1, 2)
        reduction = "sum" if self.sum_pooling else "mean"
        return fused_token_pool(tokens, scores, weighting="sigmoid", reduction=reduction)

    @classmethod
    def from_flax(cls, params: Mapping[str, Any], sum_pooling: bool = True) -> Self:
        """From the parameters of scenic's TokenLearnerModule, a nested dict of arrays.

        Errors as in `TokenLearner.from_flax`.
        """
        return cls._from_state(convert.flax_token_learner_v1(params), sum_pooling=sum_pooling)


def _lecun_normal(kernel: torch.Tensor) -> None:
    """Variance 1 / fan-in; cutting a normal off at two standard deviations leaves 0.8796 of its deviation."""
    std = math.sqrt(1 / kernel[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)
