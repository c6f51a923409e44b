"""CUDA kernels on a CPU: every thread of a block a fiber, with tensor cores and copies emulated.

It finds wrong indices, missing barriers and reads of what was never written, without a GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


def test_tokenlearner(tmp_path: Path) -> None:
    """Forward, input gradients and weight gradients against sums in double, threads run in either order."""
    compiler = shutil.which("c++")
    if compiler is None or not (CUDA / "include" / "cuda_bf16.h").exists():
        pytest.skip("it needs a C++ compiler and the headers of CUDA")
    program = tmp_path / "emulated"
    include = [f"-I{path}" for path in (CUDA / "include", ROOT / "csrc", ROOT / "tests" / "csrc")]
    source = str(ROOT / "tests" / "csrc" / "tokenlearner_emulated.cpp")
    command = [compiler, "-std=c++17", "-O1", "-DJAIR_EMULATED", *include, source, "-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
