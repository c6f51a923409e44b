"""What each of the learned image tokens looks at, drawn over the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from jair.model import JAIR
from jair.plots import label


@torch.no_grad()
def image_attention(model: JAIR, pixel_values: torch.Tensor) -> torch.Tensor:
    """Where the image's learned tokens look: weights [B,K,H,W] over the grid of image tokens, each sums to 1.

    Those of the model's image resampler; of a `LatentResampler` the mean over its heads.

    Args:
        model: a model with the fusion "joint_adaptive". pixel_values: [B,3,S,S].

    Raises:
        ValueError: another fusion, whose image tokens are not resampled.
    """
    if model.config.fusion != "joint_adaptive":
        raise ValueError(f"fusion: expected 'joint_adaptive' to have maps, got {model.config.fusion!r}")
    image = model.image_encoder(pixel_values)
    weights: torch.Tensor = model.fusion.image_resampler.attention_weights(image)  # type: ignore[operator, union-attr]
    if weights.ndim == 4:
        weights = weights.mean(dim=1)
    side = math.isqrt(weights.shape[-1])
    maps: torch.Tensor = weights.unflatten(-1, (side, side))
    return maps


def sheet(image: torch.Tensor, maps: torch.Tensor, title: Sequence[str] = ()) -> Figure:
    """The image, then a map of each token over it: the brighter, the more it looks there.

    Each map has its own scale, from 0 to its peak, which is written above it as a multiple of what a token
    would give each position that looked everywhere alike.

    Args:
        image: [S,S,3] in [0,1]. maps: [K,H,W], from `image_attention`. title: lines above the sheet.
    """
    columns = math.ceil(math.sqrt(1 + len(maps)))
    rows = math.ceil((1 + len(maps)) / columns)
    figure = Figure(figsize=(1.5 * columns, 1.7 * rows + 0.25 * len(title)), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in cells:
        axes.set_axis_off()
    box = (0, 1, 0, 1)  # both pictures fill it, whatever their sizes
    cells[0].imshow(image.numpy(), extent=box)
    cells[0].set_title("image", fontsize=8)
    grey = image.mean(dim=-1).numpy()
    for index, (axes, weights) in enumerate(zip(cells[1:], maps, strict=False)):
        axes.imshow(grey, extent=box, cmap="gray", vmin=0, vmax=1)
        axes.imshow(weights.numpy(), extent=box, cmap="inferno", vmin=0, alpha=0.6, interpolation="bilinear")
        axes.set_title(f"{index}: {float(weights.max()) * weights.numel():.1f}x", fontsize=8)
    if title:
        figure.suptitle("\n".join(map(label, title)), fontsize=9)
    return figure
