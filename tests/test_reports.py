"""jair report: pages and plots of runs, and what the learned tokens look at."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from jair import JAIR, JAIRConfig
from jair.runs import read_run, read_runs, smoothed

pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
pytest.importorskip("transformers", reason="the extra 'models' is not installed")


def jair(*arguments: str | Path) -> str:
    """The command's standard output; its errors are raised."""
    from jair.commands import app

    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def step(number: int, **more: Any) -> dict[str, Any]:
    record = {
        "step": number,
        "loss": 5 / number,
        "lr": 1e-3,
        "probabilities": {"scenes/query": 0.25, "scenes/$count": 0.75},
        "losses": {"scenes/query": 4 / number, "scenes/$count": None},
        "examples_per_second": 100.0,
    }
    return {**record, **more}


def write_log(folder: Path, records: list[dict[str, Any]], end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + end)
    return folder


def texts(svg: Path) -> set[str]:
    """All that is written in a plot."""
    return {"".join(e.itertext()).strip() for e in ElementTree.parse(svg).iter() if e.tag.endswith("text")}


def test_a_page_of_two_runs(tmp_path: Path) -> None:
    first = [step(n) for n in range(1, 41)] + [
        {"step": 20, "val_loss": 0.5, "accuracy": 0.25},
        {"step": 40, "val_loss": 0.75, "accuracy": 0.5},
    ]
    runs = [write_log(tmp_path / "one", first), write_log(tmp_path / "two|", [step(n) for n in range(1, 4)])]
    out = tmp_path / "out" / "page"
    assert jair("report", *runs, "--out", out).strip() == str(out / "report.md")
    page = (out / "report.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in page if line.startswith("|")
    ]
    header = [
        "run",
        "steps",
        "loss at the end",
        "lowest validation loss",
        "at step",
        "examples/s",
        "accuracy",
    ]
    assert rows[0] == header
    # The last 5 % of 40 steps are two: (5/39 + 5/40) / 2.
    assert rows[2] == ["one", "40", f"{(5 / 39 + 5 / 40) / 2:.4f}", "0.5000", "20", "100.0", "0.5000"]
    assert rows[3] == [r"two\|", "3", f"{5 / 3:.4f}", "", "", "100.0", ""]
    assert {"one", "two|", "step", "loss"} <= texts(out / "learning_curves.svg")
    assert {"scenes/query", "scenes/$count"} <= texts(out / "probabilities.svg")
    assert "scenes/query" in texts(out / "losses.svg")
    for name in ("learning_curves", "probabilities", "losses"):
        assert f"({name}.svg)" in "\n".join(page)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    jair("report", *runs, "--out", out)
    assert {
        path.name: path.read_bytes() for path in out.iterdir()
    } == before  # the same, and nothing left over


def test_lines_carry_the_numbers(tmp_path: Path) -> None:
    from jair import plots

    run = read_run(write_log(tmp_path / "a", [step(n) for n in (1, 2, 4)] + [{"step": 4, "val_loss": 0.5}]))
    (axes,) = plots.learning_curves([run]).axes
    training, validation = axes.lines
    assert list(training.get_xdata()) == [1, 2, 4]
    assert list(training.get_ydata()) == [5, 2.5, 1.25]
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([4], [0.5])
    (axes,) = plots.by_source([run], "probabilities", "probability").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.25] * 3, [0.75] * 3]
    (axes,) = plots.by_source([run], "losses", "loss").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[4, 2, 1], []]


def test_smoothing() -> None:
    pairs = [(n, float(n)) for n in range(1, 8)]
    assert smoothed(pairs) == ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7])
    assert smoothed(pairs, points=3) == ([2, 5, 7], [2, 5, 7])
    assert smoothed([(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)]) == ([1, 4], [1, 2])
    assert smoothed([]) == ([], [])


def test_logs_of_stopped_and_resumed_runs(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "a", [step(1), step(2, loss=9.0), step(3), step(2, loss=7.0)], end='\n{"step": 4, "lo'
    )
    run = read_run(log)
    assert [(r["step"], r["loss"]) for r in run.steps] == [(1, 5.0), (2, 7.0), (3, 5 / 3)]
    assert run.cut_off
    out = tmp_path / "out"
    jair("report", log, "--out", out)
    assert "The last line of a was cut off and is left out." in (out / "report.md").read_text()


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_log(tmp_path / parent / "run", [step(1)]) for parent in ("x", "y")]
    assert [run.name for run in read_runs([paths[0], paths[1] / "metrics.jsonl"])] == ["x/run", "y/run"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one record, got none"),
        ('{"step": 1', "expected at least one record, got a cut-off line"),
        ('{"step": 1\n{"step": 2}\n', "line 1: expected a JSON object, got '{\"step\": 1'"),
        ('{"step": 1}\n[]\n', "line 2: expected an object with a step, got '[]'"),
        ('{"loss": 1}\n', "line 1: expected an object with a step, got '{\"loss\": 1}'"),
    ],
)
def test_bad_logs(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        read_run(tmp_path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("resampler", ["latent", "tokenlearner", "spatial"])
def test_maps_are_the_weights_row_by_row(resampler: str) -> None:
    from jair.attention_maps import image_attention

    torch.manual_seed(0)
    model = JAIR(JAIRConfig.preset("tiny", resampler=resampler)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    maps = image_attention(model, pixels)
    assert maps.shape == (2, 16, 8, 8)
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(2, 16))
    image = model.image_encoder(pixels)
    weights = model.fusion.image_resampler.attention_weights(image)  # type: ignore[union-attr, operator]
    expected = weights.mean(1) if resampler == "latent" else weights
    assert torch.equal(maps[1, 3, 2, 1], expected[1, 3, 2 * 8 + 1])


def test_the_sheet(tmp_path: Path, picture: Path) -> None:
    from PIL import Image

    torch.manual_seed(0)
    JAIR(JAIRConfig.preset("tiny", num_latents=4)).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    asked = ("--attention", tmp_path / "model", "--image", picture, "--prompt", "Is it $5?")
    assert jair("report", *asked, "--out", out).strip() == str(out / "attention.png")
    with Image.open(out / "attention.png") as sheet:
        assert sheet.width >= 3 * 120
        assert (
            sum(count > 0 for count in sheet.convert("L").histogram()) > 100
        )  # the picture, not a blank sheet


def test_the_sheet_shows_peaks() -> None:
    from jair.attention_maps import sheet

    maps = torch.zeros(2, 2, 2)
    maps[0, 0, 1], maps[1] = 1, 0.25
    figure = sheet(torch.zeros(4, 4, 3), maps, ["a_b", "$x$"])
    assert [axes.get_title() for axes in figure.axes] == ["image", "0: 4.0x", "1: 1.0x", ""]
    drawn = figure.axes[1].images[1].get_array()
    assert drawn.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "RUN: expected the folder of a run, or --attention with --image, got neither"),
        (("--attention", "model"), "--image: expected beside --attention, got none"),
        (("run", "--image", "photo.png"), "--attention: expected beside --image, got none"),
        (("run", "--prompt", "What?"), "--attention: expected beside --prompt, got none"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        jair("report", *arguments)


def test_models_without_maps(tmp_path: Path, picture: Path) -> None:
    JAIR(JAIRConfig.preset("tiny", fusion="concat")).save_pretrained(tmp_path / "model")
    message = "fusion: expected 'joint_adaptive' to have maps, got 'concat'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        jair("report", "--attention", tmp_path / "model", "--image", picture, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
