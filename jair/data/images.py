"""Pictures as tensors."""

from __future__ import annotations

import io
from contextlib import suppress
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
        BadExample: it is missing, broken or too large.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadExample("missing image", str(path)) from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Image:
    """A picture's bytes, in any format that Pillow reads, as RGB: upright, 16 bits scaled to 8, on white.

    Raises:
        BadExample: they are broken, or more pixels than Pillow's limit.
    """
    pillow = optional_import("PIL.Image")
    try:
        image: Image = pillow.open(io.BytesIO(data))
        return _opaque(_eight_bits(_upright(image)))
    except pillow.DecompressionBombError as error:
        raise BadExample("too large", name) from error
    except Exception as error:  # decoders raise whatever their parsers do, struct.error and IndexError too
        raise BadExample("broken image", name) from error


def _upright(image: Image) -> Image:
    """As its EXIF data say it is to be shown."""
    image.load()
    with suppress(Exception):  # EXIF data that are broken: the pixels are not
        optional_import("PIL.ImageOps").exif_transpose(image, in_place=True)
    return image


def _eight_bits(image: Image) -> Image:
    """Grey of 16 bits, which Pillow would cut at 255, as 8; "I" is what it opened 16 bits as before 11."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image, dtype=np.float64).clip(0, 65535) / 257
        return optional_import("PIL.Image").fromarray(grey.round().astype(np.uint8))  # type: ignore[no-any-return]
    return image


def _opaque(image: Image) -> Image:
    """RGB; what is transparent shows white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    page = optional_import("PIL.Image").new("RGBA", colours.size, "white")
    page.alpha_composite(colours)
    return page.convert("RGB")  # type: ignore[no-any-return]


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
