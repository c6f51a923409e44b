"""Loads the compiled kernels; a failure is recorded with its reason, never raised at import and never hidden."""

from __future__ import annotations

from pathlib import Path

import torch

PATH = Path(__file__).with_name("_C.so")


def _load() -> str | None:
    if not PATH.exists():
        return f"the compiled library {PATH.name} is missing: install the wheel, or build it with pip install -e ."
    try:
        torch.ops.load_library(str(PATH))
    except OSError as error:
        return f"the compiled library {PATH.name} could not be loaded: {error}"
    return None


load_error: str | None = _load()


def has_cuda_kernels() -> bool:
    """Whether the library was built with its CUDA sources."""
    if load_error is not None:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("jair_kernels::token_pool_forward", "CUDA"))
