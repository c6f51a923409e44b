"""Fill Triton's cache with what the GPU tests and the benchmarks launch, without a GPU.

    TRITON_CACHE_DIR=cache python -m tests.gpu.precompile --arch 90

For machines whose time is short: compiling takes longer there than all tests. The cache is copied there, to
a folder that TRITON_CACHE_DIR names; of it files that end in .cubin and .json are enough. Its keys hold where
Triton and the sources are the same. Launches compile and do nothing else: results are not looked at.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import jair_kernels
from benchmarks import contestants, shapes
from jair_kernels import _backends, _triton
from jair_kernels.testing import Sample, run

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

Work = tuple[str, Callable[[], Any]]


class FakeDriver:
    """What Triton asks of a driver before it launches."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_only(kernel: Any, grid: tuple[Any, ...], main: torch.Tensor, *args: Any, **meta: Any) -> None:
    """In the place of `_triton.launch`."""
    kernel.warmup(*args, grid=grid, **meta)


def pretend(arch: int) -> None:
    """From here on Triton's kernels take tensors on the CPU, compile, and are not run."""
    driver.set_active(FakeDriver(arch))
    torch.cuda.get_device_capability = lambda *_: divmod(arch, 10)  # type: ignore[assignment]
    for module in pkgutil.walk_packages(jair_kernels.__path__, "jair_kernels."):
        if "triton" in module.name:
            importlib.import_module(module.name)
    for name, module in list(sys.modules.items()):
        if name.startswith("jair_kernels") and hasattr(module, "launch"):
            module.launch = compile_only  # type: ignore[attr-defined]
    _triton._load_tuned = lambda key: None
    traits = _backends._TRAITS["triton"]
    _backends._TRAITS["triton"] = _backends._Traits(("cuda", "meta", "cpu"), traits.dtypes, None)


def of_tests() -> Iterator[Work]:
    """Every case of tests/gpu on Triton."""
    with patch.object(torch.cuda, "is_available", return_value=True):
        tests = importlib.import_module("test_device")
        small_calls = importlib.import_module("small_calls")
    tests.on_device = lambda sample: sample

    def call(sample: Callable[[], Sample]) -> None:
        run(sample(), "triton")

    for key, case in tests._cases().items():
        for dtype in tests.DTYPES:
            yield key, partial(call, partial(case.sample, dtype))
    for op in tests.OPS:
        for dtype in tests.DTYPES:
            for b, n in ((1, 1500), (64, 197), (3, 70), (3, 33)):
                yield f"{op} {b}x{n}", partial(call, partial(tests.small, op, dtype, b, n))
    for case in small_calls.CASES:
        for dtype in (torch.float32, torch.bfloat16):
            yield f"small {case.op}", partial(call, partial(case.sample, dtype))


def of_benchmarks() -> Iterator[Work]:
    """Every row of the quick benchmarks but those of whole models."""

    def call(group: shapes.Group) -> None:
        problem = contestants.Problem.build(group, "cpu", 0)
        problem.call(problem.function("triton"))(0)

    for op in (*shapes.POOLING_OPS, *shapes.FUSION_OPS):
        for group in shapes.groups(op, "cuda", full=False):
            if not group.full:
                yield str(group), partial(call, group)


def main() -> None:
    """Compile the calls of one part of all; a call that Triton refuses is told."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.precompile", description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="compute capability times 10 (default: 90)")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="the I-th of N")
    options = parser.parse_args()
    pretend(options.arch)
    part, parts = options.part
    for index, (name, call) in enumerate((*of_tests(), *of_benchmarks())):
        if index % parts != part:
            continue
        try:
            call()
        except ValueError as error:  # why_not's reason
            print(f"{name}: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
