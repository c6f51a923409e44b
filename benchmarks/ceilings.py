"""What the machine can do at most, measured in the same run: copying and multiplying matrices."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.inputs import TORCH_DTYPES
from benchmarks.machine import cpu_isa

_SECONDS = 0.4  # for each quantity
_CPU_COPY_MIB = (4, 16, 64)  # what the benchmarked calls read lies between these; the fastest counts
_SIDE = {"cpu": 1536, "cuda": 8192}


def _fastest(run: Callable[[], object], device: str) -> float:
    """Seconds of the fastest call within the time allowed."""

    def seconds() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds()
    best, start = seconds(), time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        best = min(best, seconds())
    return best


def working_set(device: str) -> int:
    """Bytes that inputs must exceed so that the last-level cache of a GPU does not hold them; 0 on a CPU."""
    return 3 * torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0


def _copy_rate(device: str) -> float:
    sizes = _CPU_COPY_MIB if device == "cpu" else (max(1024, working_set(device) >> 20),)
    rates = []
    for mib in sizes:
        source = torch.ones(mib << 20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        rates.append(2 * source.nbytes / _fastest(partial(target.copy_, source), device))
    return max(rates)


def _matmul_rate(device: str, dtype: torch.dtype) -> float:
    side = _SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _fastest(lambda: torch.mm(a, b, out=out), device)


def _tile_rate() -> float | str:
    """FLOP/s of a core's tile unit times the threads, or why it is unknown."""
    if cpu_isa() != "amx":
        return "no tile unit in use"
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return "no C++ compiler"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "tile_rate.so"
        source = Path(__file__).with_name("tile_rate.cpp")
        command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
        if subprocess.run(command, check=False).returncode:
            return f"{source.name} does not compile here"
        measure = ctypes.CDLL(str(library)).tile_flops_per_second
    measure.restype = ctypes.c_double
    return float(max(measure() for _ in range(5))) * torch.get_num_threads()


def measure(device: str, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """Bytes/s of a copy (read and written), FLOP/s of torch.mm per dtype and, on AMX, of the tile unit."""
    ceilings: dict[str, Any] = {"copy": _copy_rate(device), "matmul": {}, "tiles": None}
    for dtype in dtypes:
        ceilings["matmul"][dtype] = _matmul_rate(device, TORCH_DTYPES[dtype])
    if device == "cpu" and "bf16" in dtypes:
        ceilings["tiles"] = _tile_rate()
    return ceilings


def matmul_rate(ceilings: dict[str, Any], dtype: str) -> float:
    """The most FLOP/s a kernel could reach; torch.mm is under a fifth of what AMX tiles do."""
    rate: float = ceilings["matmul"][dtype]
    tiles = ceilings["tiles"]
    return max(rate, tiles) if dtype == "bf16" and isinstance(tiles, float) else rate


def fraction(ceilings: dict[str, Any], dtype: str, flops: int, moved: int, seconds: float) -> float:
    """Shortest time the ceilings allow, over the time taken."""
    shortest = max(flops / matmul_rate(ceilings, dtype), moved / float(ceilings["copy"]))
    return shortest / seconds
