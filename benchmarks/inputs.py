"""Inputs of the benchmarked ops: random tokens, and patch tokens of real photographs."""

from __future__ import annotations

import torch

from benchmarks.fusion import FusionCase
from benchmarks.shapes import Case

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SIDE, _PATCH = 224, 16
_CHANGING = ("q", "k", "v", "x", "t", "f", "mask", "dy")  # of the attention and fusion ops


def photo_tokens(images: int) -> torch.Tensor:
    """[images, 196, 768] in [0, 1]: 16 x 16 x 3 patches of 224 x 224 crops of photographs from scikit-learn.

    Raw pixels, so the mean of a token is far from zero, unlike that of random ones.
    """
    grid = _SIDE // _PATCH
    patches = _crops(images, _SIDE).view(images, grid, _PATCH, grid, _PATCH, 3).permute(0, 1, 3, 2, 4, 5)
    return patches.reshape(images, grid * grid, _PATCH * _PATCH * 3) / 255


def photographs(images: int, side: int) -> torch.Tensor:
    """[images, 3, side, side]: crops of photographs from scikit-learn, roughly of mean 0 and deviation 1."""
    return (_crops(images, side).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225


def _crops(images: int, side: int) -> torch.Tensor:
    """Bytes [images, side, side, 3]; a crop larger than the photograph, of 427 x 640 pixels, repeats it."""
    from sklearn.datasets import load_sample_images  # here: only these rows need it

    photos = load_sample_images().images
    crops = []
    for index in range(images):
        photo = torch.from_numpy(photos[index % len(photos)].copy())
        while min(photo.shape[:2]) <= side:
            photo = photo.repeat(2, 2, 1)
        room = (photo.shape[0] - side, photo.shape[1] - side)
        top, left = (index * step % space for step, space in zip((37, 61), room, strict=True))
        crops.append(photo[top : top + side, left : left + side])
    return torch.stack(crops)


def _tokens(case: Case, generator: torch.Generator) -> torch.Tensor:
    if case.data == "random":
        return torch.randn(case.b, case.n, case.d, generator=generator)
    tokens = photo_tokens(case.b)
    if tokens.shape != (case.b, case.n, case.d):
        raise ValueError(f"case: expected photographs as {list(tokens.shape)}, got {case}")
    return tokens


def parameters(op: str, case: Case | FusionCase, dtype: str, device: str) -> dict[str, torch.Tensor]:
    """What stays from call to call: weights, scaled like those of a freshly initialised layer."""
    if isinstance(case, FusionCase):
        drawn = case.tensors(TORCH_DTYPES[dtype], device, 0)
        return {name: t for name, t in drawn.items() if name not in _CHANGING}
    if op == "fused_token_pool":
        return {}
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int, scale: float) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) * scale
        return values.to(device, TORCH_DTYPES[dtype])

    return {
        "w1": randn(case.h, case.d, scale=case.d**-0.5),
        "b1": randn(case.h, scale=0.1),
        "w2": randn(case.k, case.h, scale=case.h**-0.5),
        "b2": randn(case.k, scale=0.1),
        "norm_weight": 1 + randn(case.d, scale=0.1),
        "norm_bias": randn(case.d, scale=0.1),
    }


def activations(
    op: str, case: Case | FusionCase, dtype: str, device: str, seed: int
) -> dict[str, torch.Tensor]:
    """What changes from call to call: x, what accompanies it, and the gradient that arrives at y."""
    if isinstance(case, FusionCase):
        drawn = case.tensors(TORCH_DTYPES[dtype], device, seed)
        return {name: t for name, t in drawn.items() if name in _CHANGING}
    generator = torch.Generator().manual_seed(seed)
    tensors = {"x": _tokens(case, generator)}
    tokens = torch.randn(case.b, case.k, case.d, generator=generator)
    if op == "fused_token_pool":
        tensors["scores"] = torch.randn(case.b, case.n, case.k, generator=generator)
    if op == "fused_tokenfuser":
        tensors |= {"tokens": tokens, "dy": torch.randn(case.b, case.n, case.d, generator=generator)}
    else:
        tensors["dy"] = tokens
    return {name: value.to(device, TORCH_DTYPES[dtype]) for name, value in tensors.items()}
