"""Evaluation: scores, groups, files, and answers that do not depend on their neighbours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jair import JAIR, JAIRConfig

transformers = pytest.importorskip("transformers", reason="the extra 'models' is not installed")
pytest.importorskip("PIL", reason="the extra 'models' is not installed")

from PIL import Image  # noqa: E402

from jair.data.examples import Example  # noqa: E402
from jair.data.sources import Skipped  # noqa: E402
from jair.evaluation import Prediction, evaluate, submission, write_submission  # noqa: E402


class Listed:
    """A source that is a list of examples."""

    def __init__(self, metric: str, examples: list[Example], *skipped: str) -> None:
        self.name, self.metric, self.examples, self.size = f"test/{metric}", metric, examples, len(examples)
        self.answered = True
        self.skipped = Skipped()
        for name in skipped:
            self.skipped.add("missing image", name)

    def evaluation(self, limit: int | None = None, **_: int) -> Iterator[Example]:
        return iter(self.examples[:limit])


class Parrot(torch.nn.Module):
    """Answers what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.config = JAIRConfig.preset("tiny")
        self.modes: list[bool] = []

    def generate(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        self.modes.append(self.training)
        return torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids], dim=1)


def example(prompt: str, *answers: str, id: str = "0", group: str = "", shade: int = 0) -> Example:
    return Example(Image.new("RGB", (20, 30), (shade,) * 3), prompt, answers[0], answers, id, group)


def score(metric: str, examples: list[Example], **options: Any) -> dict[str, Any]:
    tokenizer = transformers.ByT5Tokenizer()
    return evaluate(Parrot(), tokenizer, Listed(metric, examples), **options)  # type: ignore[arg-type]


def test_accuracy_overall_and_by_group() -> None:
    examples = [
        example("Red.", "red", id="a", group="query"),
        example("blue", "red", id="b", group="query"),
        example(" 2 ", "2", id="c", group="count"),
        example("4", "3", "4", id="d"),
    ]
    result = score("exact", examples, batch_size=3)
    assert result["accuracy"] == 3 / 4
    assert result["groups"] == {
        "count": {"accuracy": 1, "examples": 1},
        "query": {"accuracy": 0.5, "examples": 2},
    }
    assert (result["source"], result["metric"], result["examples"]) == ("test/exact", "exact", 4)
    assert result["predictions"][2] == Prediction("c", "2", "count", 1.0)
    assert score("exact", examples, limit=2)["accuracy"] == 1 / 2


def test_vqa_accuracy_is_averaged() -> None:
    result = score("vqa", [example("two", *["2"] * 3, *"abcdefg"), example("no", *["yes"] * 10)])
    assert result["accuracy"] == pytest.approx(0.9 / 2)


def test_answers_that_are_no_labels() -> None:
    examples = [
        example("Entailment", "entailment"),
        example("perhaps", "neutral"),
        example("neutral", "contradiction"),
    ]
    result = score("label", examples)
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["no_label"] == pytest.approx(1 / 3)


def test_captions_are_scored_by_image() -> None:
    pytest.importorskip("pycocoevalcap", reason="the extra 'train' is not installed")
    examples = [
        example("a red cube", "a red ball", id="1", group="x"),
        example("never read", "a red ball", id="1", group="x"),
        example("a dog", "a dog", id="2"),
    ]
    result = score("caption", examples)
    assert result["examples"] == 2
    assert result["cider"] == pytest.approx((2.5 + 5) / 2)  # worked by hand in test_metrics.py
    assert result["groups"] == {"x": {"cider": pytest.approx(2.5), "examples": 1}}
    assert result["bleu1"] == pytest.approx(4 / 5, rel=1e-6)
    assert [p.text for p in result["predictions"]] == ["a red cube", "a dog"]


@pytest.mark.parametrize("fusion", ["joint_adaptive", "concat"])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_an_answer_does_not_depend_on_its_batch(fusion: str, num_beams: int) -> None:
    torch.manual_seed(0)
    model = JAIR(JAIRConfig.preset("tiny", fusion=fusion))
    for parameter in model.parameters():  # far from all-alike answers
        parameter.data = parameter.data * 3
    source = Listed("exact", [example("what? " * (n % 4), "x", id=str(n), shade=40 * n) for n in range(6)])
    said = [
        [
            p.text
            for p in evaluate(
                model,
                transformers.ByT5Tokenizer(),
                source,  # type: ignore[arg-type]
                batch_size=size,
                num_beams=num_beams,
                max_new_tokens=8,
            )["predictions"]
        ]
        for size in (1, 4)
    ]
    assert said[0] == said[1]
    assert len(set(said[0])) > 2


def test_the_model_is_left_as_it_was() -> None:
    parrot = Parrot().train()
    done: list[int] = []
    source = Listed("exact", [example("x", "x")] * 5)
    tokenizer = transformers.ByT5Tokenizer()
    evaluate(parrot, tokenizer, source, batch_size=2, progress=done.append)  # type: ignore[arg-type]
    assert parrot.training
    assert parrot.modes == [False] * 3
    assert done == [2, 4, 5]


@pytest.mark.parametrize(
    ("metric", "written"),
    [
        ("vqa", [{"question_id": 262148000, "answer": "2"}, {"question_id": "x7", "answer": "é"}]),
        ("exact", [{"questionId": "262148000", "prediction": "2"}, {"questionId": "x7", "prediction": "é"}]),
        ("label", [{"pairID": "262148000", "prediction": "2"}, {"pairID": "x7", "prediction": "é"}]),
        ("caption", [{"image_id": 262148000, "caption": "2"}, {"image_id": "x7", "caption": "é"}]),
    ],
)
def test_files_of_answers(tmp_path: Path, metric: str, written: list[dict[str, Any]]) -> None:
    predictions = [Prediction("262148000", "2", "", 1.0), Prediction("x7", "é", "", 0.0)]
    assert submission(metric, predictions) == written
    path = tmp_path / "new" / "out.json"
    write_submission(path, metric, predictions)
    assert json.loads(path.read_text(encoding="utf-8")) == written
    assert [p.name for p in path.parent.iterdir()] == ["out.json"]
    assert path.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o666


def test_an_id_is_a_number_only_if_it_is_written_as_one() -> None:
    ids = ["0", "00", "007", "12", "\u0663", "-1", "1.0"]
    listed = submission("vqa", [Prediction(name, "x", "", 0.0) for name in ids])
    assert [entry["question_id"] for entry in listed] == [0, "00", "007", 12, "\u0663", "-1", "1.0"]


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    from jair._files import replacing

    path = tmp_path / "out.json"
    path.write_text("old")

    def fill_the_disk() -> None:
        with replacing(path) as file:
            file.write_text("ne")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("metric", "examples", "options", "message"),
    [
        (
            "exact",
            [],
            {},
            "source: expected at least one example in test/exact, got none (1 skipped: 7.jpg: missing image)",
        ),
        ("bleu", [], {}, "source.metric: expected 'vqa' or 'exact' or 'label' or 'caption', got 'bleu'"),
        ("exact", [], {"batch_size": 0}, "batch_size: expected an int >= 1, got 0"),
        ("exact", [], {"limit": 0}, "limit: expected an int >= 1, got 0"),
        ("vqa", [example("x", "yes")], {}, "answers: expected 10, got 1"),
    ],
)
def test_bad_input(metric: str, examples: list[Example], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate(Parrot(), transformers.ByT5Tokenizer(), Listed(metric, examples, "7.jpg"), **options)  # type: ignore[arg-type]


def run_command(*arguments: str | Path, also: str = "") -> str:
    """The standard output of `jair eval`; errors are raised. Its standard error has the text `also`."""
    from typer.testing import CliRunner

    from jair.commands import app

    result = CliRunner().invoke(app, ["eval", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert also in result.stderr
    return result.stdout


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jair.data import sources

    torch.manual_seed(0)
    model = JAIR(JAIRConfig.preset("tiny")).eval()
    model.save_pretrained(tmp_path / "model")
    examples = [example("what?", "x", id=str(n), group="g", shade=40 * n) for n in range(3)]
    said = evaluate(model, transformers.ByT5Tokenizer(), Listed("exact", examples), max_new_tokens=4)  # type: ignore[arg-type]
    examples[1] = example("what?", said["predictions"][1].text, id="1", group="g", shade=40)
    options = ("--source", "test:x", "--split", "val", "--max-new-tokens", 4, "--out", tmp_path / "out.json")
    monkeypatch.setattr(sources.SourceSpec, "parse", lambda text: text)
    monkeypatch.setattr(
        sources, "open_source", lambda spec, split, **_: Listed("exact", examples, "8.jpg", "9.jpg")
    )
    told = "test/exact: 2 skipped, missing image: 8.jpg, 9.jpg"
    printed = run_command(tmp_path / "model", *map(str, options), also=told)
    scores = json.loads(printed.splitlines()[-1])
    right = [p.text == e.answer for p, e in zip(said["predictions"], examples, strict=True)]
    assert scores == {
        "checkpoint": str(tmp_path / "model"),
        "split": "val",
        "source": "test/exact",
        "metric": "exact",
        "examples": 3,
        "skipped": 2,
        "accuracy": sum(right) / 3,
        "groups": {"g": {"accuracy": sum(right) / 3, "examples": 3}},
    }
    assert sum(right) >= 1
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written == [{"questionId": p.id, "prediction": p.text} for p in said["predictions"]]


def test_the_command_on_scenes(tmp_path: Path) -> None:
    """Of the same questions it gives the same scores, whatever the batch."""
    torch.manual_seed(0)
    JAIR(JAIRConfig.preset("tiny")).save_pretrained(tmp_path)
    options = ("--source", "scenes", "--split", "test", "--limit", "7", "--max-new-tokens", "3")
    printed = [run_command(tmp_path, *options, "--batch-size", n) for n in ("7", "2")]
    scores = [json.loads(text.splitlines()[-1]) for text in printed]
    assert scores[0] == scores[1]
    assert scores[0]["examples"] == 7
    assert sum(group["examples"] for group in scores[0]["groups"].values()) == 7
    with pytest.raises(ValueError, match=r"^source: expected no path after 'scenes', got 'x'$"):
        run_command(tmp_path, "--source", "scenes:x")


def test_the_command_without_a_model(tmp_path: Path) -> None:
    message = f"{tmp_path}: expected a saved model or a run with a whole checkpoint, got neither"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run_command(tmp_path, "--source", "scenes")
