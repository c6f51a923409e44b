"""Which backend runs: the automatic choice, the explicit one, and installations with a part missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from op_samples import NAMES, OPS, sample

import jair_kernels as jk
from jair_kernels import _backends, _library
from jair_kernels._fusion_samples import FUSION_OPS

PACKAGE = Path(jk.__file__).parent


def exactly(message: str) -> str:
    """A pattern for pytest.raises."""
    return f"^{re.escape(message)}$"


needs_library = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))
UNAVAILABLE = [b for b in _backends.BACKENDS if b not in jk.available_backends()]


def on(device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(2, 7, 12, device=device, dtype=dtype)


def test_reference_is_always_available() -> None:
    assert jk.available_backends()[0] == "reference"
    assert all(jk.why_not(op, "reference") is None for op in OPS)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", UNAVAILABLE)
def test_why_not_gives_the_reason_of_the_machine(op: str, backend: str) -> None:
    reason = jk.why_not(op, backend)
    assert reason
    assert reason == _backends.unavailable(backend) == jk.why_not(op, backend, on("cpu"))


@needs_library
def test_why_not_looks_at_device_and_dtype() -> None:
    assert jk.why_not("fused_token_pool", "cpu", on("cpu", torch.float64)) is None
    assert jk.why_not("fused_token_pool", "cpu", on("meta")) is None
    reason = jk.why_not("fused_token_pool", "cpu", torch.empty(2, 7, 12, dtype=torch.int64))
    assert reason == "it takes float32, bfloat16, float16, float64, got int64"


@pytest.mark.parametrize(
    ("op", "backend", "message"),
    [
        ("token_pool", "cpu", f"op: expected one of {', '.join(_backends.operators())}, got 'token_pool'"),
        ("fused_token_pool", "gpu", "backend: expected one of reference, cpu, triton, cuda, got 'gpu'"),
        ("fused_token_pool", None, "backend: expected one of reference, cpu, triton, cuda, got None"),
    ],
)  # fmt: skip
def test_why_not_refuses_unknown_names(op: str, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        jk.why_not(op, backend)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", UNAVAILABLE)
def test_an_explicit_backend_that_cannot_run_is_an_error_with_the_reason(op: str, backend: str) -> None:
    message = f"backend: expected one that can run {op}, got {backend!r}: {jk.why_not(op, backend)}"
    with pytest.raises(ValueError, match=exactly(message)):
        sample(op)(backend=backend)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_backend_is_the_reference(op: str) -> None:
    call = sample(op)
    assert torch.equal(call(backend="reference"), call.reference())


@needs_library
@pytest.mark.parametrize("op", OPS)
def test_the_automatic_choice_is_a_kernel(op: str) -> None:
    assert _backends.select(op, None, *sample(op).tensors.values()) == "cpu"


@needs_library
def test_the_automatic_choice_passes_over_what_does_not_fit() -> None:
    assert _backends.select("fused_token_pool", None, on("meta")) == "reference"


@needs_library
def test_use_backend_nests_and_ends_with_its_block() -> None:
    x = on("cpu")

    def chosen() -> str:
        return _backends.select("fused_token_pool", None, x)

    with jk.use_backend("reference"):
        assert chosen() == "reference"
        with jk.use_backend("cpu"):
            assert chosen() == "cpu"
        assert chosen() == "reference"
        assert _backends.select("fused_token_pool", "cpu", x) == "cpu"
    assert chosen() == "cpu"


@needs_library
def test_use_backend_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), jk.use_backend("reference"):
        raise KeyError
    assert _backends.select("fused_token_pool", None, on("cpu")) == "cpu"


@needs_library
def test_use_backend_raises_for_inputs_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU kernels take all; here they have a limit."""
    monkeypatch.setitem(_backends._FITS["fused_token_pool"], "cpu", lambda *inputs: "x is too wide")
    message = "backend: expected one that can run fused_token_pool, got 'cpu': x is too wide"
    call = sample("fused_token_pool")
    with jk.use_backend("cpu"), pytest.raises(ValueError, match=exactly(message)):
        call()
    assert torch.equal(call(), call.reference())  # by itself the choice passes over it


@needs_library
def test_use_backend_takes_tensors_without_data() -> None:
    x, scores = (t.to("meta") for t in sample("fused_token_pool").tensors.values())
    with jk.use_backend("cpu"):
        assert jk.fused_token_pool(x, scores).device.type == "meta"


@needs_library
def test_use_backend_holds_for_its_thread_only() -> None:
    inside, done, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        inside.wait()
        seen.append(_backends.select("fused_token_pool", None, on("cpu")))
        with jk.use_backend("cpu"):
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with jk.use_backend("reference"):
        inside.set()
        done.wait()
        assert _backends.select("fused_token_pool", None, on("cpu")) == "reference"
    thread.join()
    assert seen == ["cpu"]


@pytest.mark.parametrize("backend", ["gpu", "", "CPU", None])
def test_use_backend_refuses_unknown_names(backend: str) -> None:
    message = f"backend: expected one of reference, cpu, triton, cuda, got {backend!r}"
    with pytest.raises(ValueError, match=exactly(message)), jk.use_backend(backend):
        pass


@pytest.mark.parametrize("backend", UNAVAILABLE)
def test_use_backend_refuses_what_is_not_available(backend: str) -> None:
    message = f"backend: expected one that is available, got {backend!r}: {_backends.unavailable(backend)}"
    with pytest.raises(ValueError, match=exactly(message)), jk.use_backend(backend):
        pass


@needs_library
@pytest.mark.parametrize("op", OPS)
def test_the_backward_runs_on_the_backend_of_its_forward(op: str) -> None:
    call = sample(op).requiring_grad()
    y = call()
    with jk.use_backend("reference"):
        y.square().sum().backward()
    again = sample(op).requiring_grad()
    again(backend="cpu").square().sum().backward()
    for name, tensor in call.tensors.items():
        assert torch.equal(tensor.grad, again.tensors[name].grad), name


# Installations with a part missing: a copy of the package in a process of its own.

SMOKE = """
import torch, jair_kernels as jk
x, scores = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 3)
y = jk.fused_token_pool(x, scores)
torch.testing.assert_close(y, jk.reference.token_pool(x, scores))
y.sum().backward()
w1, w2 = torch.randn(4, 8), torch.randn(3, 4)
assert jk.fused_tokenlearner(x, w1, None, w2, None, backend="reference").shape == (2, 3, 8)
for op in ("fused_token_pool", "fused_tokenlearner", "fused_tokenfuser"):
    print(op, jk.why_not(op, {backend!r}))
try:
    jk.fused_token_pool(x, scores, backend={backend!r})
except ValueError as error:
    print(error)
print(jk.available_backends())
"""


def copy_package(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "jair_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "jair_kernels"


def python(folder: Path, *arguments: str, **environment: str) -> str:
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_unavailable(folder: Path, backend: str, reason: str, available: str, **environment: str) -> None:
    """The copy in `folder` imports, computes with what it has, and says why `backend` cannot run."""
    out = python(folder, "-c", SMOKE.format(backend=backend), **environment)
    lines = [line for line in out.splitlines() if reason in line]
    assert len(lines) == 4, out
    assert lines[3].startswith(f"backend: expected one that can run fused_token_pool, got {backend!r}: ")
    assert available in out.splitlines()[-1]
    report = python(folder, "-m", "jair_kernels", **environment)
    assert any(backend in line and reason in line for line in report.splitlines()), report


def test_without_the_compiled_library(tmp_path: Path) -> None:
    (copy_package(tmp_path) / "_C.so").unlink(missing_ok=True)
    reason = "the compiled library _C.so is missing: install the wheel, or build it (pip install -e .)"
    assert_unavailable(tmp_path, "cpu", reason, "('reference',")
    assert_unavailable(tmp_path, "cuda", reason, "('reference',")


def test_with_a_broken_library(tmp_path: Path) -> None:
    (copy_package(tmp_path) / "_C.so").write_bytes(b"not a library")
    assert_unavailable(tmp_path, "cpu", "the compiled library _C.so could not be loaded: ", "('reference',")


@needs_library
def test_with_a_library_that_lacks_an_op(tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    library, found = package / "_library.py", "return has_operator("
    assert found in library.read_text()
    library.write_text(library.read_text().replace(found, f'{found[:6]} op != "tokenfuser" and {found[7:]}'))
    out = python(tmp_path, "-c", SMOKE.format(backend="cpu"))
    assert "fused_tokenfuser fused_tokenfuser has no cpu kernel" in out
    assert "fused_token_pool None" in out


def test_without_triton(tmp_path: Path) -> None:
    copy_package(tmp_path)
    hide = (
        "import sys\nsys.modules['triton'] = None\n"  # find_spec and import both fail, as if it were absent
    )
    (tmp_path / "sitecustomize.py").write_text(hide)
    assert_unavailable(tmp_path, "triton", "triton is not installed", "'reference'")


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_without_a_gpu(backend: str, tmp_path: Path) -> None:
    why_not = _backends.unavailable(backend) or ""
    if "not installed" in why_not or (backend == "cuda" and not _library.has_cuda_kernels()):
        pytest.skip(why_not)
    copy_package(tmp_path)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    assert_unavailable(tmp_path, backend, "no CUDA device is available", "'reference'", **hidden)


@needs_library
def test_without_cuda_in_the_build(tmp_path: Path) -> None:
    if _library.has_cuda_kernels():
        pytest.skip("this library was built with CUDA")
    copy_package(tmp_path)
    reason = "the library was built without CUDA (nvcc was not found, or JAIR_KERNELS_CUDA=0)"
    assert_unavailable(tmp_path, "cuda", reason, "('reference', 'cpu'")


def test_import_touches_no_driver_and_prints_nothing(tmp_path: Path) -> None:
    copy_package(tmp_path)
    code = "import jair_kernels, torch; assert not torch.cuda.is_initialized()"
    assert python(tmp_path, "-W", "error::UserWarning:jair_kernels", "-c", code) == ""


def test_every_public_function_is_registered() -> None:
    assert set(_backends.operators()) == {*(f"fused_{name}" for name in NAMES.values()), *FUSION_OPS}
    assert set(jk.__all__) >= set(_backends.operators())


@pytest.mark.parametrize("op", OPS)
def test_why_not_takes_as_many_tensors_as_are_known(op: str) -> None:
    """The limits of a backend that is not available here are asked too."""
    sizes = {"fused_token_pool": ((2, 7, 12), (2, 7, 3)), "fused_cross_attention": ((2, 7, 2, 12),) * 3}
    learner = ((2, 7, 12), (6, 12), (3, 6))
    sizes |= {"fused_tokenlearner": learner, "fused_tokenfuser": (learner[0], (2, 3, 12), *learner[1:])}
    inputs = [torch.empty(size) for size in sizes.get(op, ((2, 7, 12),))]
    for backend, fits in _backends._FITS[op].items():
        for count in range(1, len(inputs) + 1):
            reason = fits(*inputs[:count])  # of a limit that these inputs are not within, or None
            assert reason is None or (op, backend) == ("fused_tokenlearner", "cuda"), (backend, count)
