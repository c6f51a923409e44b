"""The model that comes with the package: found by its name, and right about as often as its card says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'models' is not installed")
pytest.importorskip("typer", reason="the extra 'models' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
from typer.testing import CliRunner

from jair import JAIR
from jair.commands import app
from jair.pretrained import FOLDER, model_folder

ROOT = Path(__file__).parents[1]
CARD = (FOLDER / "tiny" / "README.md").read_text()


def jair(*words: str) -> str:
    outcome = CliRunner().invoke(app, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_a_name_is_a_folder_unless_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder("tiny") == FOLDER / "tiny"
    assert model_folder("runs/tiny") == Path("runs/tiny")
    assert model_folder("huge") == Path("huge")
    (tmp_path / "tiny").mkdir()
    assert model_folder("tiny") == Path("tiny")


def test_it_is_small_and_is_loaded_as_asked() -> None:
    assert sum(file.stat().st_size for file in (FOLDER / "tiny").iterdir()) < 5e6
    assert JAIR.from_pretrained("tiny").embedding.weight.dtype == torch.float16
    assert JAIR.from_pretrained("tiny", dtype=torch.float32).embedding.weight.dtype == torch.float32


def test_it_answers_what_the_readme_shows() -> None:
    (command, answer) = re.findall(
        r"^jair (generate tiny .*?)\s+# (.*)$", (ROOT / "README.md").read_text(), re.M
    )[0]
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in shlex.split(command)]
    assert jair(*words).strip() == answer


def test_it_is_as_good_as_its_card_says() -> None:
    (stated,) = re.findall(r"^\| all \| ([0-9.]+) \|", CARD, re.M)
    printed = jair(
        "eval", "tiny", "--source", "scenes", "--split", "test", "--limit", "240", "--device", "cpu"
    )
    accuracy = 100 * json.loads(printed.splitlines()[-1])["accuracy"]
    spread = 3.5 * 100 * (0.25 / 240) ** 0.5  # of 240 answers, beyond which chance goes once in 2,000 times
    assert abs(accuracy - float(stated)) < spread
