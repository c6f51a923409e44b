"""The command jair, run as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jair import JAIR, JAIRConfig

pytest.importorskip("typer", reason="the extra 'models' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'models' is not installed")


def jair(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from jair.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_cost_prints_and_writes_the_counts(tmp_path: Path) -> None:
    options = ("--set", "num_latents=8", "--no-memory", "--json", "--out", tmp_path)
    result = jair("cost", "--preset", "tiny", *options)
    assert result.returncode == 0, result.stderr
    rows = {(row["table"], row["label"]): row for row in json.loads(result.stdout)}
    from jair import cost

    config = JAIRConfig.preset("tiny", num_latents=8, fusion="concat")
    assert rows["Fusion", "concat"]["macs"] == cost.macs(config).total
    assert rows["Fusion", "concat"]["parameters"] == cost.parameters(config)
    assert rows["Fusion", "concat"]["paper"] is None
    assert json.loads((tmp_path / "cost.json").read_text()) == list(rows.values())
    assert "| concat |" in (tmp_path / "README.md").read_text()
    assert "<svg" in (tmp_path / "cost.svg").read_text()


@pytest.mark.parametrize("picture", ["photograph", "grey"])
def test_generate_answers_about_a_picture(picture: str, tmp_path: Path) -> None:
    from PIL import Image

    from jair.data.images import read_image, to_pixels

    torch.manual_seed(0)
    model = JAIR(JAIRConfig.preset("tiny")).eval()
    model.save_pretrained(tmp_path / "model")
    if picture == "grey":
        Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 20).convert("L").save(tmp_path / "photo.png")
    else:
        datasets = pytest.importorskip(
            "sklearn.datasets", reason="scikit-learn, which has photographs, is missing"
        )
        Image.fromarray(datasets.load_sample_image("china.jpg")).save(tmp_path / "photo.png")
    asked = ("--image", tmp_path / "photo.png", "--prompt", "What is it?")
    result = jair("generate", tmp_path / "model", *asked)
    assert result.returncode == 0, result.stderr
    tokenizer = transformers.ByT5Tokenizer()
    words = torch.tensor([tokenizer("What is it?").input_ids])
    answer = model.generate(to_pixels(read_image(tmp_path / "photo.png"), 64).unsqueeze(0), words)
    assert result.stdout == tokenizer.decode(answer[0], skip_special_tokens=True).strip() + "\n"

    described = jair("describe", tmp_path / "model")
    assert described.returncode == 0, described.stderr
    assert '"num_latents": 16' in described.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cost", "--preset", "huge"), "jair: preset: expected 'tiny' or 'base' or 'large', got 'huge'"),
        (("cost", "--set", "dim"), "jair: --set: expected key=value, got 'dim'"),
        (
            ("describe", "nowhere"),
            "jair: nowhere: expected a saved model or a run with a whole checkpoint, got neither",
        ),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = jair(*arguments)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == message
    assert "Traceback" not in result.stderr
