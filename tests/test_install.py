"""What is built and installed: one wheel for every Python and torch, needing nothing it does not have to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import jair_kernels
from jair_kernels import _library

ROOT = Path(__file__).parents[1]
GLIBC, GLIBCXX = (2, 34), (3, 4, 29)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output; a failing command fails the test with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def inspect(tool: str, *arguments: str) -> str:
    """What readelf or objdump tells of the compiled library."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if _library.load_error is not None:
        pytest.skip(_library.load_error)
    return run(tool, *arguments, _library.PATH)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of this checkout; object files that an installation from it has left in build/ are reused."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler is installed")
    for leftover in (ROOT / "build").glob("lib*"):  # setuptools would pack modules that exist no more
        shutil.rmtree(leftover)
    folder = tmp_path_factory.mktemp("dist")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> dict[str, list[str]]:
    (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    message = Parser().parsestr(wheel.read(path).decode())
    return {key: message.get_all(key, []) for key in message.keys()}  # noqa: SIM118 (a message is no dict)


def test_wheel_is_for_every_python(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    assert re.fullmatch(r"jair_kernels-[0-9.]+-py3-none-\w+\.whl", Path(wheel.filename).name)
    assert metadata(wheel, "WHEEL")["Root-Is-Purelib"] == ["false"]


def test_wheel_contents(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"jair_kernels/_C.so", "jair_kernels/py.typed", "jair/py.typed"} <= names
    for package in ("jair", "jair_kernels"):
        files = [
            file for kind in ("py", "json", "safetensors") for file in ROOT.glob(f"{package}/**/*.{kind}")
        ]
        assert {str(path.relative_to(ROOT)) for path in files} <= names
    folders = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert folders == {"jair", "jair_kernels"}
    suffixes = {Path(name).suffix for name in names if ".dist-info/" not in name}
    assert suffixes <= {".py", ".so", ".typed", ".json", ".safetensors", ".md"}


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    known = metadata(wheel, "METADATA")
    assert known["Name"] == ["jair-kernels"]
    assert known["Version"] == [jair_kernels.__version__]
    assert known["Requires-Python"] == [">=3.10"]
    assert known["License-Expression"] == ["Apache-2.0"]
    required = {entry for entry in known["Requires-Dist"] if "extra ==" not in entry}
    assert required == {"torch>=2.10", "numpy"}


def test_isolated_build_gets_torch() -> None:
    """setup.py imports torch: without it in build-system.requires an isolated build has no torch."""
    requires = re.search(r"\[build-system\]\s+requires = \[(.*?)\]", (ROOT / "pyproject.toml").read_text())
    assert requires is not None
    assert {'"torch>=2.10"', '"ninja"', '"wheel"'} <= set(requires[1].split(", "))


def test_library_needs_no_python_and_no_cuda() -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", inspect("readelf", "--dynamic", "--wide"))
    assert needed
    for name in ("libpython", "libtorch_python", "libcudart", "libtorch_cuda", "libc10_cuda", "libcuda"):
        assert not [entry for entry in needed if entry.startswith(name)], needed


def test_library_runs_with_older_system_libraries() -> None:
    symbols = inspect("objdump", "--dynamic-syms")
    for name, newest in (("GLIBC", GLIBC), ("GLIBCXX", GLIBCXX)):
        versions = re.findall(rf"\b{name}_([0-9.]+)", symbols)
        assert max(tuple(map(int, version.split("."))) for version in versions) <= newest


def test_library_uses_the_stable_interface_alone() -> None:
    """No C++ symbol of PyTorch, only its C functions: they are what outlives an upgrade of torch."""
    undefined = re.findall(r"\*UND\*.*?(\S+)$", inspect("objdump", "--dynamic-syms"), re.MULTILINE)
    assert [name for name in undefined if name.startswith(("aoti_torch_", "torch_"))]
    assert not [name for name in undefined if re.match(r"_ZNK?\d*(St)?(2at|3c10|5torch|4c10)", name)]


def test_setup_py_is_small() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) < 100


def test_package_is_typed() -> None:
    assert (Path(jair_kernels.__file__).parent / "py.typed").exists()


def test_import_does_not_start_cuda() -> None:
    program = "import jair_kernels, torch; print(torch.cuda.is_initialized())"
    assert run(sys.executable, "-c", program) == "False\n"


def test_without_the_library_the_reference_runs(tmp_path: Path) -> None:
    """A checkout that was not built imports, computes, and says what is missing."""
    shutil.copytree(ROOT / "jair_kernels", tmp_path / "jair_kernels", ignore=shutil.ignore_patterns("*.so"))
    program = (
        "import torch, jair_kernels as jk; "
        "y = jk.fused_token_pool(torch.ones(2, 3, 4), torch.zeros(2, 3, 5)); "
        "assert torch.equal(y, torch.ones(2, 5, 4)); "
        "print(jk.available_backends(), jk.why_not('fused_token_pool', 'cpu'))"
    )
    said = run(sys.executable, "-c", program, cwd=tmp_path)
    assert "'cpu'" not in said
    assert "the compiled library _C.so is missing" in said
