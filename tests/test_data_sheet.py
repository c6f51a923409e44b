"""jair data show: what a sheet has on it, and in which format it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")

from PIL import Image
from typer.testing import CliRunner

from jair.data.commands import COLUMNS, LINES, SIDE, app, sheet
from jair.data.scenes.source import ScenesSource


def test_a_sheet_shows_pictures() -> None:
    examples = list(ScenesSource("val").evaluation(7))
    page = sheet(examples)
    assert page.size == (COLUMNS * (SIDE + 12), 2 * (SIDE + 14 * LINES + 12))
    shown = page.crop((6, 6, 6 + SIDE, 6 + SIDE))
    assert shown.tobytes() == examples[0].image.resize((SIDE, SIDE)).tobytes()


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.png", "PNG"), ("a.jpg", "JPEG"), ("new/a.JPEG", "JPEG"), ("a.webp", "WEBP")],
)
def test_a_sheet_has_the_format_of_its_suffix(name: str, format: str, tmp_path: Path) -> None:
    out = tmp_path / name
    made = CliRunner().invoke(app, ["show", str(out), "--split", "val", "--count", "2"])
    assert made.exit_code == 0, made.output
    want = np.asarray(sheet(list(ScenesSource("val").evaluation(2))), dtype=float)
    with Image.open(out) as page:
        assert page.format == format
        assert np.abs(np.asarray(page.convert("RGB")) - want).mean() < (0.5 if format == "PNG" else 8)
    assert [file.name for file in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("name", ["sheet.bmp", "sheet"])
def test_a_sheet_of_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["show", str(tmp_path / name)])
    expected = "OUT: expected a file with the suffix .png, .jpg, .jpeg, .webp, got"
    assert isinstance(made.exception, ValueError)
    assert str(made.exception) == f"{expected} {tmp_path / name}"
    assert not list(tmp_path.iterdir())
