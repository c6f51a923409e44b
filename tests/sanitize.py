"""Runs the kernel tests against a CPU library built with the address and undefined-behaviour sanitizers.

``python -m tests.sanitize [pytest arguments]``. The sources are copied to build/sanitize/, so that the
library of the working tree stays as it is; setup.py of the copy gives every other flag. A finding ends the
run: PyTorch allocates through the sanitizer's malloc, hence a read past the end of a tensor is one.

Where the processor has all but AMX, tile registers are in software: see tests/csrc/amx_emulator.h.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from jair_kernels.testing import ISAS, available_isas

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "sanitize"
# -O2, as -O1 forms no fused multiply-adds: the arithmetic, and the error the tests bound, would be another.
FLAGS = ["-O2", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# The files whose tests call the kernels; what compiles or spawns programs of its own is left out.
TESTS = [
    *("token_pool", "tokenlearner", "tokenfuser", "query_pool", "add_norm", "gelu", "cross_attention"),
    *("latent_resample", "gated_fusion", "transformer_layer", "row_sums", "masks", "determinism", "threads"),
]
LEFT_OUT = "not compile and not export and not fork and not worker and not opcheck"
BUILD = """
import os, sys
import setuptools  # before distutils, which it provides
from distutils.core import run_setup
command = ["-q", "build_ext", "--inplace"]
distribution = run_setup(os.path.abspath("setup.py"), command, stop_after="commandline")
(extension,) = distribution.ext_modules
extension.extra_compile_args["cxx"] += sys.argv[1:]
extension.extra_link_args.remove("-Wl,-s")
extension.extra_link_args += sys.argv[1:]
distribution.run_commands()
"""


def copy_sources() -> None:
    for name in ("csrc", "jair", "jair_kernels", "tests", "benchmarks"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "results")
        shutil.copytree(ROOT / name, COPY / name, ignore=ignored, dirs_exist_ok=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, COPY / name)


def build() -> None:
    environment = {**os.environ, "JAIR_KERNELS_CUDA": "0"}
    widest = available_isas()[-1]  # what cannot run here is not tested
    flags = [*FLAGS]
    if widest == "avx512_bf16":
        widest = "amx"
        shutil.copy2(COPY / "tests/csrc/emulated_isa.cpp", COPY / "csrc/cpu/detect_isa.cpp")
        flags += ["-include", str(COPY / "tests/csrc/amx_emulator.h")]
        print("AMX: in software, this processor has none", flush=True)
    command = [sys.executable, "-c", BUILD, *flags, f"-DJAIR_WIDEST_ISA={ISAS.index(widest)}"]
    done = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    if b"__asan_report" not in (COPY / "jair_kernels" / "_C.so").read_bytes():
        raise SystemExit("the library was built without the address sanitizer")


def runtime(name: str) -> str:
    """Path of a run-time library of the compiler."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def main(arguments: list[str]) -> int:
    copy_sources()
    build()
    # libstdc++ too: the sanitizer looks for its exception functions when the process starts.
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(map(runtime, ("libasan.so", "libstdc++.so"))),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",  # Python and OpenMP keep memory until the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
    }
    files = [f"tests/test_{name}.py" for name in TESTS if (COPY / "tests" / f"test_{name}.py").exists()]
    # -s: a finding ends its process at once, with the report on stderr, and no other takes its place.
    options = ["-q", "-s", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    options += ["--numprocesses", "auto", "--dist", "loadfile", "--max-worker-restart", "0"]
    command = [sys.executable, "-m", "pytest", *options, *files, *arguments]
    return subprocess.run(command, cwd=COPY, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
