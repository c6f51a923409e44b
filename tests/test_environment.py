"""``python -m jair_kernels``: the report, as text and as JSON, and what it says of GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jair_kernels
from jair_kernels import __main__ as environment
from jair_kernels import _backends, _library

CUDA_SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "jair_kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads(run("--json"))


def test_json_has_the_versions(facts: dict) -> None:
    assert facts["package"] == jair_kernels.__version__
    assert facts["torch"] == torch.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["cuda"] == torch.version.cuda
    assert set(facts) >= {"triton", "gpus", "library", "cpu_isa", "backends", "support", "verified"}


def test_json_has_every_backend_with_its_reason(facts: dict) -> None:
    assert tuple(facts["backends"]) == ("reference", "cpu", "triton", "cuda")
    available = [name for name, reason in facts["backends"].items() if reason is None]
    assert tuple(available) == jair_kernels.available_backends()
    assert all(facts["backends"][name] for name in facts["backends"] if name not in available)


def test_support_table_is_complete_and_is_what_why_not_says(facts: dict) -> None:
    cells = {(row["op"], row["backend"], row["dtype"]): row["reason"] for row in facts["support"]}
    assert len(cells) == len(facts["support"]) == len(_backends.operators()) * 4 * 4
    for (op, backend, dtype), reason in cells.items():
        x = torch.empty(2, 196, 768, dtype=environment.DTYPES[dtype], device="meta")
        if backend == "reference" or x.dtype not in _backends.dtypes(backend):
            assert (reason is None) == (backend == "reference"), (op, backend, dtype)
        else:
            assert reason == jair_kernels.why_not(op, backend, x)


def test_an_op_without_sizes_is_asked_about_its_element_types(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.report()["support"]
    assert set(environment._SIZES) == set(_backends.operators())
    monkeypatch.delitem(environment._SIZES, "fused_transformer_layer")
    assert environment.report()["support"] == before


def test_isa_is_the_one_in_use(facts: dict) -> None:
    if _library.load_error is not None:
        pytest.skip(f"no compiled library: {_library.load_error}")
    best = torch.ops.jair_kernels.cpu_isa_best()
    assert facts["cpu_isa"] == {
        "active": _library.ISAS[torch.ops.jair_kernels.cpu_isa()],
        "best": _library.ISAS[best],
    }


def test_isa_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    if _library.load_error is not None:
        pytest.skip(f"no compiled library: {_library.load_error}")
    monkeypatch.setenv("JAIR_KERNELS_CPU_ISA", "portable")
    assert json.loads(run("--json"))["cpu_isa"]["active"] == "portable"
    assert "CPU kernels: portable, of at most" in run()


def test_text_names_everything() -> None:
    text = run()
    for line in (
        f"jair-kernels {jair_kernels.__version__}",
        f"torch {torch.__version__}",
        "Backends",
        "What runs here",
    ):
        assert line in text
    for op in _backends.operators():
        assert text.count(op) == 2
    for backend in _backends.BACKENDS:
        reason = _backends.unavailable(backend)
        assert f"  {backend.ljust(9)}  {'available' if reason is None else f'no: {reason}'}\n" in text


def test_an_empty_record_means_unverified() -> None:
    facts = environment.report() | {"verified": []}
    told = environment.text(facts).split("What has run on a GPU")[1]
    kernels = len(_backends.operators()) + len(environment.CUDA_OPS)
    assert told.count("unverified on a GPU") == kernels
    assert told.count("none") == 2 * len(_backends.operators()) - kernels


def test_a_kernel_that_does_not_exist_is_neither_verified_nor_unverified(facts: dict) -> None:
    cuda = {row["op"]: row["verification"] for row in facts["on_gpu"] if row["backend"] == "cuda"}
    written = {op for op in cuda if (CUDA_SOURCES / f"{op.removeprefix('fused_')}.cu").exists()}
    assert set(environment.CUDA_OPS) == written
    assert {op for op, told in cuda.items() if told is None} == set(_backends.operators()) - written
    assert all(row["verification"] for row in facts["on_gpu"] if row["backend"] == "triton")


def test_a_record_counts_for_its_version_op_and_backend_only() -> None:
    now, old = jair_kernels.__version__, "0.0.1"
    verified = [
        {"gpu": "NVIDIA H200", "version": now, "backend": "triton", "op": "fused_token_pool"},
        {"gpu": "NVIDIA A100", "version": now, "backend": "triton", "op": "fused_token_pool"},
        {"gpu": "NVIDIA H200", "version": old, "backend": "cuda", "op": "fused_token_pool"},
    ]
    lines = environment.text(environment.report() | {"verified": verified}).split("What has run on a GPU")[1]
    row = next(line for line in lines.splitlines() if "fused_token_pool" in line)
    assert "verified on NVIDIA A100, NVIDIA H200" in row
    assert "unverified on a GPU at this version (last: NVIDIA H200 at 0.0.1)" in row
    assert lines.count("unverified on a GPU") == len(_backends.operators()) + len(environment.CUDA_OPS) - 1


def test_shipped_records_are_well_formed(facts: dict) -> None:
    for record in facts["verified"]:
        assert set(record) >= {"gpu", "version", "backend", "op"}
        assert record["op"] in _backends.operators()
        assert record["backend"] in environment.GPU_BACKENDS
