"""How parameters of the model start: so that what passes through a layer keeps its size, at any width.

A linear layer starts with deviation sqrt(1 / fan-in): 0.036 at a width of 768, near the 0.02 of ViT and BERT,
but 0.09 at 128, where layers of 0.02 add next to nothing to their residual stream and learn late.
Words start with sqrt(1 / D), enter times sqrt(D) and give logits as they are (Vaswani et al., 1706.03762,
3.4): if they entered small, what attention adds, much the same for all, would make them look alike.
"""

from __future__ import annotations

import torch
from torch import nn

POSITION = 0.3  # of words, beside words of 1; and which modality a token is of
GRID = 0.5  # positions in an image
LATENT = 2.0  # so that latents start with different tokens, not all with the mean


def truncated_normal(
    *shape: int, std: float, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Parameter:
    """A parameter from the normal distribution of deviation `std`, cut off at two deviations."""
    parameter = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
    reset(parameter, std)
    return parameter


def reset(parameter: torch.Tensor, std: float) -> None:
    """Draw a parameter anew."""
    nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


def reset_layer(layer: nn.Linear | nn.Conv2d) -> None:
    """Draw the weight anew with deviation sqrt(1 / fan-in); the bias is zero."""
    reset(layer.weight, layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def reset_linears(module: nn.Module) -> None:
    """Draw every linear layer below a module anew, and its LayerNorms; other parameters stay."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            reset_layer(layer)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def reset_parts(module: nn.Module) -> None:
    """Draw the parts of a module anew, each as it starts."""
    for part in module.children():
        if isinstance(part, nn.Linear):
            reset_layer(part)
        elif isinstance(part, nn.ModuleList):
            reset_parts(part)
        else:
            part.reset_parameters()  # type: ignore[operator]
