"""Builds the kernels as one library on LibTorch's stable ABI, loaded with torch.ops.load_library.

One wheel serves every Python >= 3.10 and torch >= 2.10. CUDA sources are added when nvcc is found;
JAIR_KERNELS_CUDA=0 leaves them out, JAIR_KERNELS_CUDA=1 makes a missing nvcc an error.
"""

import hashlib
import os
import shutil
from pathlib import Path

import torch.utils.cpp_extension as cpp_extension
from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
CUDA_TARGETS = ("80", "90a", "100a")


def find_cuda() -> Path | None:
    """Root of the CUDA toolkit, or None if it is absent or not wanted."""
    wish = os.environ.get("JAIR_KERNELS_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"JAIR_KERNELS_CUDA: expected 0, 1 or auto, got {wish!r}")
    if wish == "0":
        return None
    nvcc = shutil.which("nvcc")  # may be a wrapper script outside the toolkit
    guesses = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).resolve().parents[1]]
    for root in (Path(guess) for guess in guesses if guess):
        if (root / "bin" / "nvcc").exists() and (root / "include" / "cuda_runtime.h").exists():
            return root
    if wish == "1":
        raise SystemExit("JAIR_KERNELS_CUDA=1, but no toolkit: set CUDA_HOME to the folder above bin/nvcc")
    return None


def extension() -> cpp_extension.CppExtension:
    cuda = find_cuda()
    sources = sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*.cpp"))
    # nvcc objects have no dependency file here: a header edit must change their command line to rebuild.
    headers = sorted(p for p in ROOT.glob("csrc/**/*") if p.suffix in (".h", ".cuh"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in headers)).hexdigest()[:16]
    # The uninitialized values are false findings in immintrin.h.
    warnings = ["-Wall", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    flags = {"cxx": [STABLE_ABI, "-O3", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", *warnings]}
    libraries, library_dirs = [], []
    if cuda:
        cpp_extension.CUDA_HOME = str(cuda)  # None on a CPU build of torch
        sources += sorted(ROOT.glob("csrc/cuda/*.cu"))
        flags["cxx"].append("-DJAIR_WITH_CUDA")
        gencode = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in CUDA_TARGETS]
        flags["nvcc"] = [STABLE_ABI, f"-DJAIR_HEADERS={digest}", "-DUSE_CUDA", "-O3", "-std=c++17", *gencode]
        flags["nvcc"].append("-Xcompiler=-fvisibility=hidden")
        libraries, library_dirs = ["stdc++", "cudart_static"], [str(cuda / "lib64")]
    return cpp_extension.CppExtension(
        "jair_kernels._C",
        [str(p.relative_to(ROOT)) for p in sources],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=flags,
        extra_link_args=["-Wl,--exclude-libs,ALL", "-Wl,-s"],
        libraries=libraries,
        library_dirs=library_dirs,
    )


class BuildLibrary(cpp_extension.BuildExtension):
    """A plain shared library: no Python symbols, hence no Python version in its name."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(ROOT / "build" / "temp")  # else an editable install drops its object files

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def get_export_symbols(self, ext: object) -> list[str]:
        return []


class AnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython})
