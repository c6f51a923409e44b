"""The instruction set of the CPU kernels: the widest there is, lowered by the environment or at run time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from jair_kernels import _library
from jair_kernels.testing import ISAS, available_isas

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

CHOICE = "import torch, jair_kernels; ops = torch.ops.jair_kernels; print(ops.cpu_isa(), ops.cpu_isa_best())"


@pytest.mark.parametrize("wish", [*ISAS, "", "sse9", None])
def test_choice_by_environment(wish):
    environment = {k: v for k, v in os.environ.items() if k != "JAIR_KERNELS_CPU_ISA"}
    if wish is not None:
        environment["JAIR_KERNELS_CPU_ISA"] = wish
    done = subprocess.run(
        [sys.executable, "-c", CHOICE], env=environment, capture_output=True, text=True, check=True
    )
    active, best = map(int, done.stdout.split())
    assert best == len(available_isas()) - 1
    assert active == (min(ISAS.index(wish), best) if wish in ISAS else best)


def test_choice_at_run_time():
    ops, before = torch.ops.jair_kernels, torch.ops.jair_kernels.cpu_isa()
    try:
        for i in range(len(ISAS)):
            assert ops.set_cpu_isa(i) == ops.cpu_isa() == min(i, ops.cpu_isa_best())
    finally:
        ops.set_cpu_isa(before)


def test_an_unknown_wish_is_not_ignored_in_silence():
    environment = {**os.environ, "JAIR_KERNELS_CPU_ISA": "avx1024"}
    command = [sys.executable, "-c", "import jair_kernels; print(jair_kernels.available_backends())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (
        "JAIR_KERNELS_CPU_ISA: expected one of portable, avx2, avx512, avx512_bf16, amx, got 'avx1024'"
        in done.stderr
    )
    assert "cpu" in done.stdout
