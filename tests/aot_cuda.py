"""Compile every CUDA source ahead of time, without a GPU: ``python -m tests.aot_cuda [--arch 80 90a 100a]``.

Prints registers, stack, spills and shared memory of every kernel, as ptxas reports them; fails if one spills,
keeps an array on its stack (local memory is as slow as a spill), or does not compile.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("80", "90a", "100a")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


class Kernel(NamedTuple):
    """One line of the report."""

    name: str
    registers: int
    stack: int
    spilled: int
    shared: int

    @property
    def bad(self) -> bool:
        return self.stack > 0 or self.spilled > 0


def find_nvcc() -> Path | None:
    """nvcc where setup.py looks for it."""
    on_path = shutil.which("nvcc")
    guesses = (os.environ.get("CUDA_HOME"), "/usr/local/cuda", on_path and Path(on_path).resolve().parents[1])
    found = (Path(guess) / "bin" / "nvcc" for guess in guesses if guess)
    return next((path for path in found if path.exists()), None)


def compile_one(nvcc: Path, source: Path, arch: str) -> str:
    """What ptxas prints, for a build with the flags of setup.py and of torch's own."""
    includes = [f"-I{path}" for path in (ROOT / "csrc", *cpp_extension.include_paths())]
    flags = ["-O3", "-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]
    target = [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v"]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(nvcc), "-c", str(source), "-o", str(Path(folder) / "kernels.o")]
        command += [*includes, *flags, *cpp_extension.COMMON_NVCC_FLAGS, *target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{source.name} sm_{arch}: nvcc failed\n{done.stdout}{done.stderr}")
    return str(done.stderr)


def kernels(report: str) -> Iterator[Kernel]:
    """The kernels in a report of ptxas, by demangled name where c++filt is there."""
    sections = _ENTRY.split(report)[1:]
    names, texts = sections[::2], sections[1::2]
    tool = shutil.which("c++filt")
    if tool and names:
        printed = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout
        names = [re.sub(r".*::(\w+(?:<.*?>)?)\(.*", r"\1", line) for line in printed.splitlines()]
    for name, text in zip(names, texts, strict=True):
        stack, used = _STACK.search(text), _USED.search(text)
        if stack is None or used is None:
            raise SystemExit(f"{name}: ptxas printed no resources:\n{text}")
        spilled = int(stack[2]) + int(stack[3])
        yield Kernel(name, int(used[1]), int(stack[1]), spilled, int(used[2] or 0))


def main() -> int:
    """Compile, print, and return 1 if a kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("skipped: no CUDA toolkit (nvcc) on this machine")
        return 0
    work = [(source, arch) for source in sorted(ROOT.glob("csrc/cuda/*.cu")) for arch in options.arch]
    count = failures = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        reports = pool.map(lambda item: compile_one(nvcc, *item), work)
        for (source, arch), report in zip(work, reports, strict=True):
            for kernel in kernels(report):
                count, failures = count + 1, failures + kernel.bad
                numbers = (
                    f"{kernel.registers:3} registers {kernel.stack:4} B stack {kernel.spilled:4} B spilled"
                )
                verdict = "  FAILED" if kernel.bad else ""
                print(
                    f"sm_{arch:4} {source.stem} {kernel.name:46} {numbers}"
                    f" {kernel.shared:6} B shared{verdict}"
                )
    print(f"{count} kernels compiled, {failures} failed")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
