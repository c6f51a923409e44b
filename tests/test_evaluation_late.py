"""What would fail after all the answers fails before them, and a score is printed in any case."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from test_evaluation import Listed, Parrot, example, transformers

pytest.importorskip("typer", reason="the extra 'models' is not installed")
from typer.testing import CliRunner

from jair import commands, commands_eval, cost_tables, evaluation
from jair.data import sources


class Silent(Parrot):
    """Must not be asked."""

    def generate(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("it was asked")


def test_missing_scorers_are_missed_before_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Listed("caption", [example("what?", "a dog")])
    for name in ("pycocoevalcap", "pycocoevalcap.cider.cider", "pycocoevalcap.bleu.bleu"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"^pycocoevalcap\..*pip install 'jair-kernels\[train\]'$"):
        evaluation.evaluate(Silent(), transformers.ByT5Tokenizer(), source)  # type: ignore[arg-type]


def run_eval(monkeypatch: pytest.MonkeyPatch, model: Parrot, *options: str | Path) -> Any:
    """`jair eval` with this model, on one example."""
    source = Listed("exact", [example("red", "red", id="7")])
    monkeypatch.setattr(commands_eval, "resolve", lambda path: path)
    monkeypatch.setattr(commands_eval.JAIR, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr("jair.data.tokenizers.load_tokenizer", lambda _: transformers.ByT5Tokenizer())
    monkeypatch.setattr(sources, "open_source", lambda *_, **__: source)
    words = ["eval", "model", "--source", "scenes", "--device", "cpu", *map(str, options)]
    return CliRunner().invoke(commands.app, words)


@pytest.mark.parametrize("command", ["eval", "cost"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    wanted = "a file in a folder that can be written"
    out = tmp_path / "file"
    if command == "eval":
        result = run_eval(monkeypatch, Silent(), "--out", tmp_path)
        assert str(result.exception) == f"--out: expected a file to write, got the folder {tmp_path}"
        out = tmp_path / "file" / "out.json"
        result = run_eval(monkeypatch, Silent(), "--out", out)
        assert str(result.exception) == f"--out: expected {wanted}, got {out}"
    else:
        monkeypatch.setattr(cost_tables, "count", lambda *_, **__: pytest.fail("it was counted"))
        result = CliRunner().invoke(commands.app, ["cost", "--preset", "tiny", "--out", str(out)])
        assert str(result.exception) == f"--out: expected {wanted}, got {out / 'cost.json'}"
    assert isinstance(result.exception, ValueError)


def test_scores_are_printed_before_the_answers_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(evaluation, "write_submission", full)
    result = run_eval(monkeypatch, Parrot(), "--out", tmp_path / "out.json")
    assert re.match("no space left", str(result.exception))
    assert json.loads(result.stdout.splitlines()[-1])["accuracy"] == 1
