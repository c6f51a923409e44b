"""Pictures as tensors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from jair.data.sources import BadExample
from jair.encoders import optional_import

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what ResNets are trained with


def read_image(path: Path) -> Image:
    """A picture file as RGB.

    Raises:
        BadExample: it is missing or broken.
    """
    try:
        return decode_image(path.read_bytes(), str(path))
    except OSError as error:
        raise BadExample("missing image", str(path)) from error


def decode_image(data: bytes, name: str) -> Image:
    """A picture's bytes, in any format that Pillow reads, as RGB.

    Raises:
        BadExample: they are broken.
    """
    pillow = optional_import("PIL.Image")
    try:
        image: Image = pillow.open(io.BytesIO(data))
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:  # what Pillow raises
        raise BadExample("broken image", name) from error


def to_pixels(image: Image, size: int) -> torch.Tensor:
    """A picture as float32 [3,S,S]: squeezed to a square, normalised with ImageNet's statistics."""
    if image.size != (size, size):
        image = image.resize((size, size), optional_import("PIL.Image").Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).float().permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def random_crop(image: Image, generator: np.random.Generator, least: float = 0.8) -> Image:
    """A part of the picture of its own shape, its sides from `least` to 1 times the whole."""
    share = generator.uniform(least, 1)
    width, height = (max(1, round(side * share)) for side in image.size)
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))
