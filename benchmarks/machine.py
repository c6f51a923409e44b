"""The machine and the versions a result belongs to; never a host's name."""

from __future__ import annotations

import importlib.util
import platform
import re
from importlib.metadata import version
from typing import Any

import torch

import jair_kernels
from jair_kernels import _library


def cpu_isa() -> str:
    """The instruction set our CPU kernels use, or "none" without them."""
    return "none" if _library.load_error else _library.ISAS[torch.ops.jair_kernels.cpu_isa()]


def kind(device: str) -> str:
    """Name of the folder its results lie in: cpu-avx512-amx, cpu-avx512-bf16, h200, ..."""
    if device == "cuda":
        words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower())
        return "-".join(word for word in words if word not in ("nvidia", "tesla", "geforce"))
    isa = cpu_isa().replace("_", "-")
    return f"cpu-{'avx512-amx' if isa == 'amx' else isa}"


def describe(device: str) -> dict[str, Any]:
    """What is kept of the machine in a result."""
    import cpuinfo  # type: ignore[import-untyped]  # comes with pytest-benchmark

    info = {
        "kind": kind(device),
        "processor": cpuinfo.get_cpu_info().get("brand_raw", platform.machine()),
        "isa": cpu_isa(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton") if importlib.util.find_spec("triton") else None,
        "jair_kernels": jair_kernels.__version__,
        "system": platform.system(),
    }
    if device == "cuda":
        info |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return info
