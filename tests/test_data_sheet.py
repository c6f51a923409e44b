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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "OUT", "--count", "0"], "count: expected an int >= 1, got 0"),
        (["show", "OUT", "--image-size", "0"], "image_size: expected an int >= 1, got 0"),
        (["baselines", "--examples", "0"], "examples: expected an int >= 1, got 0"),
        (["baselines", "--train-examples", "-1"], "train_examples: expected an int >= 1, got -1"),
    ],
)
def test_numbers_that_are_too_small(words: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    made = CliRunner().invoke(app, [str(out) if word == "OUT" else word for word in words])
    assert isinstance(made.exception, ValueError)
    assert str(made.exception) == message
    assert not out.exists()
