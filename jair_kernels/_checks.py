"""Argument checks. Every message reads "<argument>: expected ..., got ..."."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from numbers import Real

import torch

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_AUTOCAST = _FLOATS[:3]  # autocast leaves float64 alone
MAX_HEAD_WIDTH = 256
_NAMES = ", ".join(str(dtype)[6:] for dtype in _FLOATS)
_AUTOCAST_NAMES = ", ".join(str(dtype)[6:] for dtype in _AUTOCAST)


def _show(dims: str, sizes: Sequence[int | None]) -> str:
    return f"[{', '.join(dims.split())}] = [{', '.join('any' if s is None else str(int(s)) for s in sizes)}]"


def _strided(name: str, value: object, wanted: str = "a tensor") -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout)[6:]
        raise ValueError(f"{name}: expected a strided tensor, got layout {kind}")
    return value


def main_input(name: str, value: object, dims: str, *, nonempty: str = "N D") -> None:
    """A floating-point tensor of the given rank, e.g. dims "B N D"; axes in `nonempty` must not be 0."""
    tensor = _strided(name, value)
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected dtype {_NAMES}, got {str(tensor.dtype)[6:]}")
    letters, shape = dims.split(), tensor.shape
    if len(shape) != len(letters):
        raise ValueError(
            f"{name}: expected {len(letters)} dimensions [{', '.join(letters)}], got shape {list(shape)}"
        )
    for letter, size in zip(letters, shape, strict=True):
        if letter in nonempty and size == 0:
            raise ValueError(f"{name}: expected {letter} >= 1, got shape {list(shape)}")


def operand(
    name: str,
    value: object,
    dims: str,
    sizes: Sequence[int | None],
    main: torch.Tensor,
    mixed: bool,
    wanted: str = "a tensor",
) -> None:
    """A tensor beside the main input: these sizes (None: not 0), its device, its dtype (any if `mixed`)."""
    if (  # the common case at half the price: six operands of a score MLP cost 3 us in all
        isinstance(value, torch.Tensor)
        and value.dtype is main.dtype
        and value.layout is torch.strided
        and not value.is_nested
        and value.shape == sizes
        and value.device == main.device
    ):
        return
    tensor = _strided(name, value, wanted)
    shape, dtype = tensor.shape, tensor.dtype
    if len(shape) != len(sizes):
        raise ValueError(f"{name}: expected shape {_show(dims, sizes)}, got {list(shape)}")
    for axis, (have, want) in enumerate(zip(shape, sizes, strict=True)):
        if want is not None and have != want:
            raise ValueError(f"{name}: expected shape {_show(dims, sizes)}, got {list(shape)}")
        if want is None and have == 0:
            raise ValueError(f"{name}: expected {dims.split()[axis]} >= 1, got shape {list(shape)}")
    if dtype != main.dtype and not (mixed and dtype in _AUTOCAST):
        expected = _AUTOCAST_NAMES if mixed else f"{str(main.dtype)[6:]} like the main input"
        raise TypeError(f"{name}: expected dtype {expected}, got {str(dtype)[6:]}")
    if tensor.device != main.device:
        raise ValueError(f"{name}: expected device {main.device} like the main input, got {tensor.device}")


def optional(
    name: str, value: object, dims: str, sizes: Sequence[int | None], main: torch.Tensor, mixed: bool
) -> None:
    """As `operand`, or None."""
    if value is not None:
        operand(name, value, dims, sizes, main, mixed, wanted="a tensor or None")


def key_mask(name: str, value: object, sizes: Sequence[int], main: torch.Tensor) -> None:
    """A bool tensor [B, N] on the main input's device, or None."""
    if value is None:
        return
    mask = _strided(name, value, wanted="a bool tensor or None")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype bool (True = keep), got {str(mask.dtype)[6:]}")
    if mask.ndim != 2 or mask.shape[0] != sizes[0] or mask.shape[1] != sizes[1]:
        raise ValueError(f"{name}: expected shape {_show('B N', sizes)}, got {list(mask.shape)}")
    if mask.device != main.device:
        raise ValueError(f"{name}: expected device {main.device} like the main input, got {mask.device}")


def choice(name: str, value: object, options: Sequence[str]) -> None:
    """One of a few words."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, options))}, got {value!r}")


def positive(name: str, value: object) -> None:
    """A number above zero, also one of numpy's, that a float holds."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        fits = 0 < float(value) < float("inf")
    except OverflowError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")


def whole(name: str, value: object) -> int:
    """An integer, also one of numpy's, as an int."""
    if type(value) is int:  # all that compiled code meets
        return value
    if not isinstance(value, (bool, torch.Tensor)) and hasattr(value, "__index__"):
        with suppress(TypeError):  # an array has the method, and refuses
            return operator.index(value)
    raise TypeError(f"{name}: expected an int, got {type(value).__name__}")


def count(name: str, value: object) -> int:
    """An integer of at least 1, as an int."""
    number = whole(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number


def flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def key_range(name: str, value: object, sizes: Sequence[int], main: torch.Tensor) -> None:
    """An integer tensor [B, L, 2] on the main input's device, or None."""
    if value is None:
        return
    bounds = _strided(name, value, wanted="an integer tensor or None")
    if bounds.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected dtype int32, int64, got {str(bounds.dtype)[6:]}")
    wanted = (*sizes, 2)
    if bounds.ndim != 3 or any(h != w for h, w in zip(bounds.shape, wanted, strict=True)):
        raise ValueError(f"{name}: expected shape {_show('B L 2', wanted)}, got {list(bounds.shape)}")
    if bounds.device != main.device:
        raise ValueError(f"{name}: expected device {main.device} like the main input, got {bounds.device}")


def head_width(name: str, width: int) -> None:
    """What kernels of attention take."""
    if width > MAX_HEAD_WIDTH:
        raise ValueError(f"{name}: expected a head width d of at most {MAX_HEAD_WIDTH}, got {width}")


def divides(name: str, count: int, total_name: str, total: int) -> None:
    """A number of heads that splits what it is meant to split."""
    if total % count:
        raise ValueError(f"{name}: expected a divisor of {total_name} = {total}, got {count}")


def norm_pair(
    name: str, value: object, dims: str, sizes: Sequence[int | None], main: torch.Tensor, mixed: bool
) -> None:
    """(weight, bias or None), or None."""
    if value is None:
        return
    if not isinstance(value, tuple) or len(value) != 2:
        got = f"{len(value)} entries" if isinstance(value, tuple) else type(value).__name__
        raise TypeError(f"{name}: expected a pair (weight, bias or None) or None, got {got}")
    operand(f"{name}[0]", value[0], dims, sizes, main, mixed)
    optional(f"{name}[1]", value[1], dims, sizes, main, mixed)


def norm_fields(name: str, weight: object, bias: object, size: int, main: torch.Tensor, mixed: bool) -> None:
    """The fields <name>_weight and <name>_bias; without a weight there is no norm, and nothing to shift."""
    optional(f"{name}_weight", weight, "D", (size,), main, mixed)
    optional(f"{name}_bias", bias, "D", (size,), main, mixed)
    if weight is None and bias is not None:
        raise ValueError(f"{name}_bias: expected None where {name}_weight is None, got a tensor")


def latent_sets(name: str, value: object, b: int, main: torch.Tensor, mixed: bool) -> None:
    """Latents [L, D], which the batch shares, or [B, L, D]."""
    tensor = _strided(name, value)
    if tensor.ndim not in (2, 3):
        shared, own = _show("L D", (None, None)), _show("B L D", (b, None, None))
        raise ValueError(f"{name}: expected shape {shared} or {own}, got {list(tensor.shape)}")
    if tensor.ndim == 2:
        operand(name, tensor, "L D", (None, None), main, mixed)
    else:
        operand(name, tensor, "B L D", (b, None, None), main, mixed)


def gate(name: str, value: object, width: int, main: torch.Tensor, mixed: bool) -> None:
    """One number, or one for each channel, or None."""
    if value is None:
        return
    shape = _strided(name, value, wanted="a tensor or None").shape
    if shape not in ((1,), (width,)):
        raise ValueError(f"{name}: expected shape [1] or [D] = [{int(width)}], got {list(shape)}")
    operand(name, value, "D", shape, main, mixed)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype autocast asks for, or None where it is off or x is float64, which it leaves alone."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return None
