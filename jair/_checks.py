"""Argument checks of the modules, beside those of the operations: "<argument>: expected ..., got ..."."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._subclasses.fake_tensor import is_fake

from jair_kernels import _checks as check

LARGEST = 2**20  # size: three of them multiplied, in bytes, are still addresses
# Sizes of each kind. transformers takes any number, and fails where it is used.
ENCODER_SIZES: dict[str, tuple[str, ...]] = {
    "resnet": ("embedding_size", "hidden_sizes", "depths"),
    "vit": (
        "image_size",
        "patch_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ),
    "t5": ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
}
STAGES = ("hidden_sizes", "depths")  # lists, with a size for each


def whole_numbers(least: int = 1, /, **values: object) -> tuple[int, ...]:
    """Sizes: each an integer of at least `least`, also one of numpy's, as ints."""
    numbers = []
    for name, value in values.items():
        number = check.whole(name, value)
        if number < least:
            raise ValueError(f"{name}: expected an int >= {least}, got {number}")
        numbers.append(number)
    return tuple(numbers)


def encoder_sizes(field: str, settings: Any) -> None:
    """Of a ResNet, ViT or T5, by transformers' settings."""
    for name in ENCODER_SIZES[settings.model_type]:
        got = getattr(settings, name)
        sizes = got if name in STAGES and isinstance(got, (list, tuple)) else [got]
        if not sizes or not all(type(size) is int and 1 <= size <= LARGEST for size in sizes):
            wanted = "ints" if name in STAGES else "an int"
            raise ValueError(f"{field}: expected {name} to be {wanted} from 1 to {LARGEST}, got {got!r}")
    stages = [len(getattr(settings, name)) for name in STAGES if name in ENCODER_SIZES[settings.model_type]]
    if len(set(stages)) > 1:
        raise ValueError(f"{field}: expected a depth for each of {stages[0]} hidden_sizes, got {stages[1]}")


def finite(name: str, value: object) -> None:
    """A number of either sign that is neither infinite nor NaN."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def tokens(x: torch.Tensor, weight: torch.Tensor, channels_first: bool = False) -> torch.Tensor:
    """[B,N,D], [B,H,W,D] or, with channels_first, [B,D,H,W] as [B,N,D]; a view if possible."""
    forms = "[B, D, H, W]" if channels_first else "[B, N, D] or [B, H, W, D]"
    rank = x.ndim if isinstance(x, torch.Tensor) else 4
    if rank not in ((4,) if channels_first else (3, 4)):
        raise ValueError(f"x: expected {forms}, got shape {list(x.shape)}")
    dims = "B D H W" if channels_first else "B N D" if rank == 3 else "B H W D"
    check.main_input("x", x, dims, nonempty="N H W")
    fits_parameters("x", x, weight, axis=1 if channels_first else -1)
    return x.flatten(2).transpose(1, 2) if channels_first else x.flatten(1, -2)


def sequence(name: str, x: torch.Tensor, weight: torch.Tensor) -> None:
    """[B,N,D] with the width, device and dtype of a parameter [D]."""
    check.main_input(name, x, "B N D")
    fits_parameters(name, x, weight)


def modalities(
    image: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor | None, weight: torch.Tensor
) -> None:
    """image [B,N,D] and text [B,L,D] of one batch, each like a parameter [D]; the mask [B,L] of the text."""
    sequence("image", image, weight)
    sequence("text", text, weight)
    if text.shape[0] != image.shape[0]:
        raise ValueError(
            f"text: expected a batch of {int(image.shape[0])} like image, got shape {list(text.shape)}"
        )
    check.key_mask("text_mask", text_mask, text.shape[:2], text)


def fits_parameters(name: str, x: torch.Tensor, weight: torch.Tensor, axis: int = -1) -> None:
    """Width, device and dtype of the LayerNorm's scale [D]; under autocast any dtype."""
    if x.shape[axis] != weight.shape[0]:
        raise ValueError(f"{name}: expected D = {weight.shape[0]}, got shape {list(x.shape)}")
    if x.device != weight.device:
        raise ValueError(f"{name}: expected device {weight.device} like the parameters, got {x.device}")
    if x.dtype != weight.dtype and check.autocast_dtype(x) is None:
        want, got = str(weight.dtype)[6:], str(x.dtype)[6:]
        raise TypeError(f"{name}: expected dtype {want} like the parameters, got {got}")


def square(x: torch.Tensor) -> torch.Tensor:
    """[B,N,D] as the grid [B,H,H,D]."""
    batch, n, dim = x.shape
    side = int(n**0.5 + 0.5)  # math.isqrt stops torch.compile, and this is exact below 2^51
    if side * side != n:
        raise ValueError(f"x: expected [B, H, W, D], or [B, N, D] with N a square, got shape {list(x.shape)}")
    return x.reshape(batch, side, side, dim)


def words(name: str, ids: torch.Tensor, longest: int, vocab_size: int, also: int = 0) -> None:
    """Shape and dtype; on the CPU also that all are words or `also`: elsewhere, looking would wait."""
    if not isinstance(ids, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected dtype int64 or int32, got {str(ids.dtype)[6:]}")
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= longest:
        raise ValueError(f"{name}: expected shape [B, 1 to {longest}], got {list(ids.shape)}")
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or is_fake(ids):
        return
    wrong = ids[((ids < 0) | (ids >= vocab_size)) & (ids != also)]
    if len(wrong):
        wanted = f"0 to {vocab_size - 1}" + (f" or {also}" if also else "")
        raise ValueError(f"{name}: expected words from {wanted}, got {int(wrong[0])}")


def device(name: str, value: torch.device | str) -> None:
    """A device that holds numbers here."""
    try:
        torch.zeros(1, device=value).item()
    except (AssertionError, RuntimeError) as error:  # AssertionError: this torch was built without it
        raise ValueError(f"{name}: expected a device that is here, as cpu or cuda, got {value}") from error
