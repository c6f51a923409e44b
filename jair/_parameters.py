"""How parameters of the model start: truncated normals of deviation 0.02 as in ViT and BERT, zero biases."""

from __future__ import annotations

import torch
from torch import nn

STD = 0.02


def truncated_normal(
    *shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Parameter:
    """A parameter from the normal distribution of deviation 0.02, cut off at two deviations."""
    parameter = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
    reset(parameter)
    return parameter


def reset(parameter: torch.Tensor) -> None:
    """Draw a weight anew."""
    nn.init.trunc_normal_(parameter, std=STD, a=-2 * STD, b=2 * STD)


def reset_linears(module: nn.Module) -> None:
    """Draw every linear layer below a module anew, and its LayerNorms; other parameters stay."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            reset(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()
