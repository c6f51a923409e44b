"""The sampling experiment: its mixture, its page from finished runs, and what it skips."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
pytest.importorskip("transformers", reason="the extra 'models' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")

from test_accuracy_table import rows

from experiments import mixture, runs, sampling, sampling_report, tables
from jair import JAIRConfig
from jair._files import replacing
from jair.data.sources import SourceSpec, open_source
from jair.sampler import WARMUP


def result(rule: str, seed: int, losses: list[float], batch_size: int = 10) -> dict[str, Any]:
    names = [SourceSpec.parse(text).name for text in mixture.sources(Path("data")).values()]
    settings = {
        "stages": [{"sources": list(mixture.sources(Path("data")).values()), "steps": 30}],
        "batch_size": batch_size,
        "sampler": rule,
    }
    validations = [
        {
            "step": 10 * (i + 1),
            "val_loss": loss,
            "val_accuracy": 1 - loss,
            "val_losses": {name: loss + j for j, name in enumerate(names)},
            "val_accuracies": {name: (1 - loss) / (1 + j) for j, name in enumerate(names)},
        }
        for i, loss in enumerate(losses)
    ]
    return {
        "rule": rule,
        "name": sampling.RULES[rule],
        "seed": seed,
        "settings": settings,
        "validations": validations,
        "probabilities": {name: {"step": [1, 30], "value": [0.25, 0.25]} for name in names},
        "machine": "2 cores",
        "commit": "0123456789abcdef",
    }


def write(folder: Path, results: list[dict[str, Any]]) -> str:
    (folder / "runs").mkdir()
    for number, one in enumerate(results):
        (folder / "runs" / f"{number}.json").write_text(json.dumps(one))
    sampling_report.write(folder)
    return (folder / "README.md").read_text()


def test_the_page_counts_examples(tmp_path: Path) -> None:
    page = write(
        tmp_path,
        [
            result("difficulty", 0, [0.5, 0.2, 0.1]),  # 0.3 between 100 and 200 examples: after 166.7
            result("uniform", 0, [0.9, 0.5, 0.2]),
            result("uniform", 1, [0.9, 0.6, 0.3]),
            result("odm", 0, [0.9, 0.8, 0.7]),
        ],
    )
    table = rows(page)
    assert table[0][1:3] == ["examples to loss 0.300", "examples to 70.0 %"]
    uniform = ["uniform", "283 (267 to 300)", "283 (267 to 300)"]
    assert table[2] == [*uniform, "0.250 (0.200 to 0.300)", "75.0 (70.0 to 80.0)", "2"]
    assert table[3][:3] == ["adaptive (difficulty)", "167 (167 to 167)", "167 (167 to 167)"]
    assert table[4][:3] == ["ODM", "never", "never"]
    assert "Adaptive against uniform sampling: to the loss, 41% fewer examples; to the accuracy, 41% " in page
    assert table[5] == ["rule", "easy", "hard", "noisy", "tiny"]
    assert table[7] == ["uniform", "75.0 (70.0 to 80.0)", "37.5 (35.0 to 40.0)", *table[7][3:]]
    for file, texts in (("curves.svg", {"ODM", "examples"}), ("probabilities.svg", {"uniform", "noisy"})):
        written = {"".join(e.itertext()).strip() for e in ElementTree.parse(tmp_path / file).iter()}
        assert texts <= written


def test_the_page_tells_of_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WARMUP, "difficulty", 7)
    page = write(tmp_path, [result(rule, 0, [0.9, 0.5]) for rule in ("difficulty", "uniform")])
    told = [line for line in page.splitlines() if "draw uniformly" in line]
    assert len(told) == 1
    assert told[0].endswith(
        " Under the rule adaptive (difficulty), the first 7 of the 30 steps draw uniformly, to learn from."
    )


def test_what_another_job_is_writing_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, [result("uniform", 0, [0.9, 0.5])])
    with replacing(tmp_path / "runs" / "odm.json") as half:
        half.write_text("{")
        assert list(tables.load(tmp_path, "rule")) == ["uniform"]
        half.write_text("{}")


def test_a_rule_that_never_gets_there_is_said_to(tmp_path: Path) -> None:
    page = write(tmp_path, [result("difficulty", 0, [0.9, 0.8]), result("uniform", 0, [0.9, 0.5])])
    assert "of the loss, 1 of 1 seeds never reach the target" in page


def test_the_first_crossing_counts() -> None:
    one = result("uniform", 0, [0.5, 0.3, 0.4, 0.2])
    assert sampling_report.examples_to(one, "val_loss", 0.4) == pytest.approx(150)
    assert sampling_report.examples_to(one, "val_loss", 0.6) == 100
    assert sampling_report.examples_to(one, "val_accuracy", 0.75) == pytest.approx(375)
    assert sampling_report.examples_to(one, "val_loss", 0.1) is None


def test_the_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("NOISY", 40), ("TINY", 5), ("VALIDATION", 6)):
        monkeypatch.setattr(mixture, name, count)
    mixture.write(tmp_path)
    named = mixture.sources(tmp_path)
    train = {kind: open_source(SourceSpec.parse(text), "train", strict=True) for kind, text in named.items()}
    held = {kind: open_source(SourceSpec.parse(text), "val", strict=True) for kind, text in named.items()}
    assert [train[kind].size for kind in ("noisy", "tiny")] == [40, 5]
    assert [held[kind].size for kind in ("noisy", "tiny")] == [6, 6]
    for source in (*train.values(), *held.values()):
        example = next(iter(source.evaluation(1)))
        assert example.image.size == (64, 64)
        assert example.answer
    captions = [line.split("\t")[0] for line in (tmp_path / "noisy" / "train.tsv").read_text().splitlines()]
    assert 5 <= len(captions) - len(set(captions)) <= 25  # about half are another picture's
    before = (tmp_path / "noisy" / "train.tsv").stat().st_mtime_ns
    mixture.write(tmp_path)
    assert (tmp_path / "noisy" / "train.tsv").stat().st_mtime_ns == before


def test_an_experiment_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "COMMAND", (sys.executable, str(Path(__file__).with_name("fake_jair.py"))))
    for name in ("NOISY", "TINY", "VALIDATION"):
        monkeypatch.setattr(mixture, name, 2)
    work = tmp_path / "out" / "work"
    work.mkdir(parents=True)
    (work / "preset.json").write_text(json.dumps(JAIRConfig.preset("tiny").to_dict()))
    options = [
        "--out",
        str(tmp_path / "out"),
        "--data",
        str(tmp_path / "data"),
        "--seeds",
        "0",
        "--steps",
        "4",
    ]
    (work / "die").touch()
    assert sampling.main([*options, "--jobs", "2"]) == 1
    assert "uniform, seed 0: jair train: killed at step 2 (exit status 1)" in capsys.readouterr().err
    (work / "die").unlink()
    assert sampling.main([*options, "--jobs", "2"]) == 0
    assert "4 runs, 4 to do" in capsys.readouterr().err
    kept = json.loads((tmp_path / "out" / "runs" / "odm-seed0.json").read_text())
    assert (kept["settings"]["sampler"], kept["name"]) == ("odm", "ODM")
    assert list(kept["probabilities"]) == [
        "scenes/count",
        "scenes/objects",
        "cc/masked",
        "coco_captions/matching",
    ]
    page = (tmp_path / "out" / "README.md").read_text()
    assert [row[0] for row in rows(page)[2:6]] == [
        "uniform",
        "adaptive (difficulty)",
        "ODM",
        "size-proportional",
    ]
    assert sampling.main(options) == 0
    assert "4 runs, 0 to do" in capsys.readouterr().err
    assert sampling.main([*options, "--lr", "0.5"]) == 1
    assert "expected a run with lr 0.5, got one with 0.001" in capsys.readouterr().err
