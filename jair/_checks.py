"""Argument checks of the modules, beside those of the operations: "<argument>: expected ..., got ..."."""

from __future__ import annotations

import torch

from jair_kernels import _checks as check


def whole_numbers(**values: object) -> None:
    """Sizes: each an int of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name}: expected an int >= 1, got {value}")


def tokens(x: torch.Tensor, dim: int, channels_first: bool = False) -> torch.Tensor:
    """[B,N,D], [B,H,W,D] or, with channels_first, [B,D,H,W] as [B,N,D]; a view if possible."""
    forms = "[B, D, H, W]" if channels_first else "[B, N, D] or [B, H, W, D]"
    rank = x.ndim if isinstance(x, torch.Tensor) else 4
    if rank not in ((4,) if channels_first else (3, 4)):
        raise ValueError(f"x: expected {forms}, got shape {list(x.shape)}")
    check.main_input(
        "x", x, "B D H W" if channels_first else "B N D" if rank == 3 else "B H W D", nonempty="N H W"
    )
    if x.shape[1 if channels_first else -1] != dim:
        raise ValueError(f"x: expected {forms} with D = {dim}, got shape {list(x.shape)}")
    return x.flatten(2).transpose(1, 2) if channels_first else x.flatten(1, -2)


def square(x: torch.Tensor) -> torch.Tensor:
    """[B,N,D] as the grid [B,H,H,D]."""
    batch, n, dim = x.shape
    side = int(n**0.5 + 0.5)  # math.isqrt stops torch.compile, and this is exact below 2^51
    if side * side != n:
        raise ValueError(f"x: expected [B, H, W, D], or [B, N, D] with N a square, got shape {list(x.shape)}")
    return x.reshape(batch, side, side, dim)
