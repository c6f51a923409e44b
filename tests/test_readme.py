"""The README's examples print what it says, its support table is the code's, its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from jair_kernels import _backends
from jair_kernels.tokenlearner import passes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```\s+```\n(.*?)```", README, re.DOTALL)
NAMES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, with its header."""
    section = README.split(f"{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines is not None
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [row for row in rows if not set(row[0]) <= {"-"}]


def test_every_python_block_shows_its_output() -> None:
    assert len(EXAMPLES) == README.count("```python") == 2


@pytest.mark.parametrize(("program", "output"), EXAMPLES, ids=["function", "module"])
def test_example_prints_what_the_readme_shows(program: str, output: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), {})
    assert printed.getvalue() == output


def test_support_table_is_the_code() -> None:
    (_, *backends), *rows = table_rows("### Support")
    assert tuple(backends) == _backends.BACKENDS
    assert {row[0] for row in rows} == set(_backends.operators())
    for function, *cells in rows:
        op = function.removeprefix("fused_")
        for backend, cell in zip(backends, cells, strict=True):
            folder = ROOT / "jair_kernels" / op
            composed = "register_composed" in (folder / "op.py").read_text()  # of blocks that Triton has
            written = {
                "triton": folder / ("op.py" if composed else "triton.py"),
                "cuda": ROOT / f"csrc/cuda/{op}.cu",
            }
            takes = _backends.dtypes(backend)
            if (op, backend) == ("tokenlearner", "cuda"):  # the passes are made for tensor cores
                takes = tuple(t for t in takes if passes.unfit(torch.empty(1, 1, 768, dtype=t)) is None)
            dtypes = {NAMES[str(dtype).removeprefix("torch.")] for dtype in takes}
            expected = dtypes if backend not in written or written[backend].exists() else {"-"}
            assert set(cell.split()) == expected, (function, backend)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {
        target
        for document in (README, (ROOT / "CONTRIBUTING.md").read_text())
        for target in re.findall(r"`make ([a-z-]+)", document)
    }
    assert [target for target in sorted(named) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("<op>", "token_pool")
    named = re.findall(r"`([a-z_]+/[\w/.]+\.[a-z]+)`", text)
    assert {"csrc/cpu/token_pool_params.h", "tests/op_samples.py", "benchmarks/contestants.py"} <= set(named)
    assert [name for name in named if not (ROOT / name).exists()] == []


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_sampling_table_is_the_measured_one() -> None:
    page = (ROOT / "experiments/results/sampling/README.md").read_text()
    (_, section) = README.split("### Experiments\n", 1)
    assert rows(section)[:6] == rows(page)[:6]


def test_the_accuracy_table_is_the_measured_one() -> None:
    """Every row of the page, without its number of parameters and under a name that says more."""

    def numbers(row: str, columns: tuple[int, ...]) -> tuple[str, ...]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        return tuple(cells[column] for column in columns)

    page = (ROOT / "experiments/results/accuracy/README.md").read_text()
    measured = {numbers(row, (1, 2, 4, 5, 6)) for row in rows(page.split("## Fusions", 1)[1])}
    (_, section) = README.split("| model | GMAC | of concat | accuracy % |", 1)
    shown = {numbers(row, (1, 2, 3, 4, 5)) for row in rows(section.split("\n\n", 1)[0])}
    assert len(shown) > 10
    assert shown == {row for row in measured if row[0] != "GMAC"}
