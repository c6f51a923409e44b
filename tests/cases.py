"""The cases every op is held to: shapes that break kernels, and values that break arithmetic."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from sklearn.datasets import load_sample_image

from jair_kernels.testing import Case, Sample


def by_name(case: Case) -> str:
    return case.name


def shapes(op: str) -> list[Case]:
    """One token, odd counts, more outputs than a tile has rows, widths that are no multiple of a vector."""
    grid = [Case(op, 2, n, d, k, h=24) for n, d, k in product((1, 7, 197), (48, 96, 1000), (1, 8, 111))]
    grid += [Case(op, 2, 197, 768, k, h=64) for k in (1, 8, 111)]
    odd = [(0, 7, 48, 8, 16), (1, 65, 17, 3, 5), (3, 33, 2, 2, 1), (3, 33, 1, 8, 16), (5, 16, 31, 9, 33)]
    return grid + [Case(op, b, n, d, k, h=h) for b, n, d, k, h in odd]


def values(op: str, **options: Any) -> list[Case]:
    """Large means, a first column far from the others, one dominant score, all scores large, rows without
    variance, equal tokens; short and long images.
    """
    kinds = ["shifted", "outlier", "huge_score", "constant", "repeated"]
    kinds += ["far_scores"] * (op == "fused_token_pool")
    return [Case(op, 2, n, 96, 8, h=24, values=kind, options=options) for kind in kinds for n in (1, 7, 197)]


def layouts(op: str, **options: Any) -> list[Case]:
    """Inputs that are not contiguous."""
    kinds = ("transposed", "sliced", "expanded")
    return [
        Case(op, 3, n, d, 5, layout=kind, options=options) for kind in kinds for n, d in ((7, 48), (70, 100))
    ]


def far_apart(sample: Sample, axis: int) -> Sample:
    """The same call with x in a tensor of more than 2^31 elements: neighbours along `axis` lie 2^31 apart.

    The memory between is never touched, so it costs address space alone.

    Raises:
        RuntimeError: the system does not hand out that much address space.
    """
    x = sample.tensors["x"]
    assert x is not None
    stride = 2**31 + 64
    strides = [x.shape[2] * x.shape[1], x.shape[2], 1]
    strides[axis] = stride
    buffer = torch.empty((x.shape[axis] - 1) * stride + x.numel(), dtype=x.dtype, device=x.device)
    view = buffer.as_strided(x.shape, strides)
    view.copy_(x)
    return Sample(
        sample.op, f"{sample.name}-far_apart{axis}", {**sample.tensors, "x": view}, sample.options, sample.dy
    )


def photographs(op: str, largest: float, dtype: torch.dtype) -> Sample:
    """16 x 16 x 3 patches of two real photographs as tokens [2,1040,768], pixels from 0 to `largest`."""
    pixels = torch.stack([torch.from_numpy(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")])
    patches = pixels[:, :416, :640].unflatten(1, (26, 16)).unflatten(3, (40, 16)).transpose(2, 3)
    tokens = patches.flatten(3).flatten(1, 2).double() * (largest / 255)
    sample = Case(op, *tokens.shape, 8, h=64).sample(dtype)
    name = f"{sample.name}-photographs-0..{largest}"
    return Sample(op, name, {**sample.tensors, "x": tokens.to(dtype)}, sample.options, sample.dy)
