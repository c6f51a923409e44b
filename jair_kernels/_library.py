"""Loads the compiled kernels; a failure is recorded with its reason, never raised at import, never hidden."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

PATH = Path(__file__).with_name("_C.so")
# Of the CPU kernels, from the plainest to the widest: csrc/cpu/isa.h.
ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")


def _load() -> str | None:
    wish = os.environ.get("JAIR_KERNELS_CPU_ISA")
    if wish is not None and wish not in ISAS:  # the library takes the widest then
        expected = ", ".join(ISAS)
        warnings.warn(f"JAIR_KERNELS_CPU_ISA: expected one of {expected}, got {wish!r}", stacklevel=2)
    if not PATH.exists():
        return (
            f"the compiled library {PATH.name} is missing: install the wheel, or build it (pip install -e .)"
        )
    try:
        torch.ops.load_library(str(PATH))
    except OSError as error:
        return f"the compiled library {PATH.name} could not be loaded: {error}"
    return None


load_error: str | None = _load()


def has_kernel(op: str, device: str) -> bool:
    """Whether the library has a kernel of `op` for "CPU" or "CUDA"; one of an older version may lack it."""
    return has_operator(f"{op}_forward", device)


def has_operator(name: str, device: str) -> bool:
    """Whether the library has an operator of exactly this name for "CPU" or "CUDA"."""
    if load_error is not None or not hasattr(torch.ops.jair_kernels, name):
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"jair_kernels::{name}", device))


def has_cuda_kernels() -> bool:
    """Whether the library was built with its CUDA sources."""
    return has_kernel("token_pool", "CUDA")
