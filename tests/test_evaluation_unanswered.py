"""Test questions that are published without answers: they are answered and written, and nothing is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'models' is not installed")
pytest.importorskip("typer", reason="the extra 'models' is not installed")
pytest.importorskip("PIL", reason="the extra 'models' is not installed")

from PIL import Image
from test_evaluation import Listed, Parrot, example, transformers
from typer.testing import CliRunner

from jair import JAIR, JAIRConfig
from jair.commands import app
from jair.data.sources import SourceSpec, open_source
from jair.evaluation import Prediction, evaluate


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def photo(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade,) * 3).save(path)


def vqav2(root: Path, split: str) -> list[str]:
    """Three questions as they are published; their prompts."""
    asked = [{"image_id": i, "question": f"what is {i}?", "question_id": 500 + i} for i in range(3)]
    put(root / f"v2_OpenEnded_mscoco_{split}2015_questions.json", {"questions": asked})
    for i in range(3):
        photo(root / "test2015" / f"COCO_test2015_{i:012d}.jpg", 80 * i)
    return [f"what is {i}?" for i in range(3)]


def gqa(root: Path, split: str) -> list[str]:
    asked = {f"{500 + i}": {"imageId": f"n{i}", "question": f"what is {i}?"} for i in range(3)}
    asked["502"]["isBalanced"] = False  # type: ignore[assignment]
    kind = "all" if split == "submission" else "balanced"
    put(root / f"{split}_{kind}_questions.json", asked)
    for i in range(3):
        photo(root / "images" / f"n{i}.jpg", 80 * i)
    return [f"what is {i}?" for i in range(3 if kind == "all" else 2)]


WRITERS = {"vqav2": vqav2, "gqa": gqa}
SPLITS = [("vqav2", "test"), ("vqav2", "test-dev"), ("gqa", "test"), ("gqa", "submission")]


@pytest.mark.parametrize(("kind", "split"), SPLITS)
def test_questions_alone_are_read(kind: str, split: str, tmp_path: Path) -> None:
    prompts = WRITERS[kind](tmp_path, split)
    source = open_source(SourceSpec.parse(f"{kind}:{tmp_path}"), split, strict=True)
    assert not source.answered
    found = list(source.evaluation())
    assert [(e.id, e.prompt, e.answer, e.answers) for e in found] == [
        (f"{500 + i}", prompt, "", ()) for i, prompt in enumerate(prompts)
    ]
    assert [e.image.getpixel((0, 0)) for e in found] == [(80 * i,) * 3 for i in range(len(prompts))]


@pytest.mark.parametrize(("kind", "split"), SPLITS)
def test_the_command_writes_answers_and_says_that_nothing_is_scored(
    kind: str, split: str, tmp_path: Path
) -> None:
    prompts = WRITERS[kind](tmp_path / "data", split)
    torch.manual_seed(0)
    JAIR(JAIRConfig.preset("tiny")).save_pretrained(tmp_path / "model")
    words = ["eval", str(tmp_path / "model"), "--source", f"{kind}:{tmp_path / 'data'}", "--split", split]
    words += ["--max-new-tokens", "3", "--device", "cpu"]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, ValueError)
    expected = f"--out: expected a file, since {kind}/questions {split} has nothing to score, got none"
    assert str(refused.exception) == expected
    out = tmp_path / "out.json"
    made = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert made.exit_code == 0, made.exception
    assert f"nothing to score: no answers are published to {kind}/questions {split}" in made.stderr
    assert json.loads(made.stdout.splitlines()[-1]) == {
        "checkpoint": str(tmp_path / "model"),
        "split": split,
        "source": f"{kind}/questions",
        "metric": {"vqav2": "vqa", "gqa": "exact"}[kind],
        "examples": len(prompts),
        "skipped": 0,
        "groups": {},
    }
    source = open_source(SourceSpec.parse(f"{kind}:{tmp_path / 'data'}"), split)
    model, tokenizer = JAIR.from_pretrained(tmp_path / "model"), transformers.ByT5Tokenizer()
    said = [p.text for p in evaluate(model, tokenizer, source, max_new_tokens=3)["predictions"]]
    number, text = {"vqav2": ("question_id", "answer"), "gqa": ("questionId", "prediction")}[kind]
    ids: list[Any] = [500, 501, 502] if kind == "vqav2" else ["500", "501", "502"]
    assert json.loads(out.read_text()) == [
        {number: id, text: answer} for id, answer in zip(ids, said, strict=False)
    ]


def test_predictions_without_a_score_are_in_no_group() -> None:
    source = Listed("vqa", [example("two", "", id="a", group="count")])
    source.answered = False
    result = evaluate(Parrot(), transformers.ByT5Tokenizer(), source)  # type: ignore[arg-type]
    assert result["predictions"] == [Prediction("a", "two", "count", None)]
    assert (result["groups"], "accuracy" in result) == ({}, False)


def test_guesses_need_answers(tmp_path: Path) -> None:
    vqav2(tmp_path, "test")
    words = ["data", "baselines", "--source", f"vqav2:{tmp_path}", "--split", "test"]
    made = CliRunner().invoke(app, words)
    assert isinstance(made.exception, ValueError)
    message = "split: expected one with published answers, got 'test' of vqav2/questions"
    assert str(made.exception) == message
