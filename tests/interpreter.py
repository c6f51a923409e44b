"""Triton's interpreter for the tests of Triton kernels, which must be chosen before the kernels are imported.

A test file takes `repaired` and marks its tests with `interpreted`; one more test of it calls
`run_interpreted`, which runs the file again in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_VERSION = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
_NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])
UNUSABLE = _VERSION < (3, 7) and _NUMPY >= (2, 4)  # run-time loop bounds raise there

interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run by test_in_the_interpreter, in a process of its own"
)


def outside(test: Any) -> Any:
    """Marks the test that calls `run_interpreted`."""
    inside = pytest.mark.skipif(INTERPRETED, reason="this is the process with the interpreter")
    reason = "the interpreter of triton < 3.7 does not work with numpy >= 2.4"
    return inside(pytest.mark.skipif(UNUSABLE, reason=reason)(test))


def run_interpreted(file: str) -> int:
    """Runs the tests of a file in the interpreter, none of which may fail; how many have passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    return int(passed[1]) if passed else 0


@pytest.fixture(autouse=True)
def repaired(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter keeps bfloat16 as raw bits: it multiplies the bits in tl.dot, and its cast cuts
    them off."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter as it

    dot, cast = it.InterpreterBuilder.create_dot, it.InterpreterBuilder.cast_impl

    def widened(value: Any) -> Any:
        if value.dtype.scalar != it.tl.bfloat16:
            return value
        bits = value.data.view(np.uint16).astype(np.uint32) << 16
        return it.TensorHandle(bits.view(np.float32), it.tl.float32)

    def repaired_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    def repaired_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) != (it.tl.float32, it.tl.bfloat16):
            return cast(self, src, dst_type)
        rounded = torch.from_numpy(np.array(src.data, dtype=np.float32)).bfloat16().view(torch.int16).numpy()
        return it.TensorHandle(rounded.view(np.uint16), it.tl.bfloat16)

    for name in ("create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(it.InterpreterBuilder, name, repaired_cast)
    monkeypatch.setattr(it.InterpreterBuilder, "cast_impl", repaired_cast)
    monkeypatch.setattr(it.InterpreterBuilder, "create_dot", repaired_dot)
    yield
