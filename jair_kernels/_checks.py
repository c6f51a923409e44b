"""Argument checks. Every message reads "<argument>: expected ..., got ..."."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NAMES = ", ".join(str(dtype)[6:] for dtype in _FLOATS)


def _show(dims: str, sizes: Sequence[int]) -> str:
    return f"[{', '.join(dims.split())}] = {[int(s) for s in sizes]}"


def main_input(name: str, value: object, dims: str, *, nonempty: str = "N D") -> None:
    """A floating-point tensor of the given rank, e.g. dims "B N D"; axes in `nonempty` must not be 0."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    letters = dims.split()
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout)[6:]
        raise ValueError(f"{name}: expected a strided tensor, got layout {kind}")
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected dtype {_NAMES}, got {str(value.dtype)[6:]}")
    if value.ndim != len(letters):
        raise ValueError(f"{name}: expected {len(letters)} dimensions [{', '.join(letters)}], got shape {list(value.shape)}")
    for axis, letter in enumerate(letters):
        if letter in nonempty and value.shape[axis] == 0:
            raise ValueError(f"{name}: expected {letter} >= 1, got shape {list(value.shape)}")


def operand(name: str, value: object, dims: str, sizes: Sequence[int], main: torch.Tensor, mixed: bool) -> None:
    """A tensor of exactly these sizes beside the main input: same device, same dtype (any float if `mixed`)."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout)[6:]
        raise ValueError(f"{name}: expected a strided tensor, got layout {kind}")
    if value.ndim != len(sizes) or any(have != want for have, want in zip(value.shape, sizes, strict=True)):
        raise ValueError(f"{name}: expected shape {_show(dims, sizes)}, got {list(value.shape)}")
    if value.dtype != main.dtype and not (mixed and value.dtype in _FLOATS):
        raise TypeError(f"{name}: expected dtype {str(main.dtype)[6:]} like the main input, got {str(value.dtype)[6:]}")
    if value.device != main.device:
        raise ValueError(f"{name}: expected device {main.device} like the main input, got {value.device}")


def optional(name: str, value: object, dims: str, sizes: Sequence[int], main: torch.Tensor, mixed: bool) -> None:
    """As `operand`, or None."""
    if value is not None:
        operand(name, value, dims, sizes, main, mixed)


def key_mask(name: str, value: object, sizes: Sequence[int], main: torch.Tensor) -> None:
    """A bool tensor [B, N] on the main input's device, or None."""
    if value is None:
        return
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a bool tensor or None, got {type(value).__name__}")
    if value.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype bool (True = keep), got {str(value.dtype)[6:]}")
    if value.ndim != 2 or any(have != want for have, want in zip(value.shape, sizes, strict=True)):
        raise ValueError(f"{name}: expected shape {_show('B N', sizes)}, got {list(value.shape)}")
    if value.device != main.device:
        raise ValueError(f"{name}: expected device {main.device} like the main input, got {value.device}")


def choice(name: str, value: object, options: Sequence[str]) -> None:
    """One of a few words."""
    if value not in options:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, options))}, got {value!r}")


def positive(name: str, value: object) -> None:
    """A finite number above zero."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype autocast asks for, or None where it is off or x is float64, which it leaves alone."""
    device = x.device.type
    if device != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
