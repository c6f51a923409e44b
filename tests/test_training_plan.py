"""Settings of a run: what fits, what is told of what does not, and how they are read."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")
from training_runs import SMALL
from typer.testing import CliRunner

from jair import JAIRConfig
from jair.commands import app
from jair.training.plan import _CHECKS, TrainPlan, check_fields, read_settings


def plan(**changes: object) -> TrainPlan:
    return TrainPlan(**{"model": JAIRConfig.preset("tiny", **SMALL), "sources": ("scenes",), **changes})  # type: ignore[arg-type]


def test_learning_rate() -> None:
    made = plan(lr=2.0, warmup_steps=4, steps=12)
    assert [made.lr_at(step) for step in (1, 2, 4)] == [0.5, 1.0, 2.0]
    # Nine steps of the cosine: step 13 would be 0.
    assert made.lr_at(8) == pytest.approx(1 + torch.cos(torch.tensor(torch.pi * 4 / 9)).item())
    assert 0 < made.lr_at(12) < 0.1
    flat = plan(warmup_steps=4, lr=2.0, steps=12, schedule="constant")
    assert [flat.lr_at(step) for step in (1, 4, 5, 12)] == [0.5, 2.0, 2.0, 2.0]
    assert plan(warmup_steps=0, lr=1.0, steps=4).lr_at(1) == pytest.approx(0.5 + 0.5 * 0.8090169943749475)


def test_a_plan_survives_json() -> None:
    made = plan(ema=0.9, val=("scenes",), freeze=("embedding",))
    assert TrainPlan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected an int >= 1, got 0"),
        ({"sources": ()}, "sources: expected at least one, got none"),
        (
            {"sources": ("scenes", "scenes,task=questions")},
            "sources: expected different ones, got scenes/questions",
        ),
        ({"sources": ("pictures",)}, "source: expected 'scenes' or .*, got 'pictures'"),
        ({"lr": 0.0}, "lr: expected a finite number > 0, got 0"),
        ({"ema": 1.0}, "ema: expected a number >= 0 and < 1, got 1"),
        ({"ema": 0.5, "strategy": "fsdp"}, "ema: expected 0 with strategy 'fsdp', got 0.5"),
        ({"clip": -1.0}, "clip: expected a number >= 0, got -1"),
        ({"schedule": "best"}, "schedule: expected 'cosine' or 'constant', got 'best'"),
        ({"sampler": "nope"}, "sampler: expected 'difficulty' or 'odm' or .*, got 'nope'"),
        ({"sampler": "doremi"}, "sampler: expected a rule that needs no reference model, got 'doremi'"),
        (
            {"sources": ("scenes", "scenes,task=count,weight=2"), "sampler": "odm"},
            "sources: expected a weight of 1 with every sampler but 'temperature', "
            "got 'scenes,task=count,weight=2' with 'odm'",
        ),
        ({"seed": -1}, "seed: expected an int >= 0, got -1"),
        ({"seed": 2**63}, "seed: expected an int >= 0 and < 2"),
        ({"warmup_steps": -1}, "warmup_steps: expected an int >= 0, got -1"),
        ({"weight_decay": math.nan}, "weight_decay: expected a number >= 0, got nan"),
        ({"epsilon": 1.5}, "epsilon: expected a number >= 0 and <= 1, got 1.5"),
        ({"temperature": 0}, "temperature: expected a finite number > 0, got 0"),
        ({"strategy": "best"}, "strategy: expected 'ddp' or 'fsdp', got 'best'"),
    ],
)
def test_plans_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"steps": 7, "sources": "scenes", "freeze": ["embedding", "decoder"], "preset": "base"}')
    assert read_settings(path) == {
        "steps": 7,
        "sources": ["scenes"],
        "val": [],
        "freeze": ["embedding", "decoder"],
        "preset": "base",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "plan.json: expected JSON, got "),
        (b"\xff{}", "plan.json: expected JSON, got "),
        ("[1]", "plan.json: expected a JSON object, got list"),
        ('{"step": 7}', "plan.json: expected fields among .*, steps, .*, got step"),
    ],
)
def test_bad_settings_in_a_file(text: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message):
        read_settings(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"dim": 16}}, "model: expected a JAIRConfig, got dict"),
        ({"seed": "x"}, "seed: expected an int >= 0, got 'x'"),
        ({"steps": 1.5}, "steps: expected an int >= 1, got 1.5"),
        ({"warmup_steps": True}, "warmup_steps: expected an int >= 0, got True"),
        ({"most_bad": "3"}, "most_bad: expected an int >= 1, got '3'"),
        ({"lr": "1e-3"}, "lr: expected a number, got str"),
        ({"clip": "1"}, "clip: expected a number, got '1'"),
        ({"compile": "no"}, "compile: expected a bool, got str"),
        ({"bf16": "false"}, "bf16: expected a bool, got str"),
        ({"augment": 1}, "augment: expected a bool, got int"),
        ({"strict": None}, "strict: expected a bool, got NoneType"),
        ({"tokenizer": 5}, "tokenizer: expected a str, got 5"),
        ({"init": 5}, "init: expected a str, got 5"),
        ({"freeze": "decoder"}, "freeze: expected a list of strings, got 'decoder'"),
    ],
)
def test_fields_of_a_wrong_type(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        plan(**changes)
    if "model" not in changes:
        with pytest.raises(TypeError, match=message):
            check_fields(changes)


def test_every_field_is_checked() -> None:
    fields = {field.name for field in dataclasses.fields(TrainPlan)} - {"model"}
    assert fields == _CHECKS.keys()


def test_weights_are_for_sampling_by_size() -> None:
    assert plan(sources=("scenes,weight=3",), sampler="temperature").sampler == "temperature"
    assert plan(sources=("scenes,weight=1.0",), sampler="odm").sampler == "odm"


def test_two_folders_of_one_kind_are_two_sources() -> None:
    assert plan(sources=("cc:/a", "cc:/b"), val=("cc:/a", "cc:/b"))


def test_a_model_in_a_file_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"model": [1]}')
    message = r"model: expected an object with fields of JAIRConfig, got \[1\]"
    with pytest.raises(TypeError, match=message):
        read_settings(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("text", "got"), [('{"freeze": 5}', "5"), ('{"freeze": ["decoder", 1]}', "['decoder', 1]")]
)
def test_lists_in_a_file_are_checked_as_all_lists_are(text: str, got: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    words = ["train", str(tmp_path / "run"), "--config", str(tmp_path / "plan.json"), "--source", "scenes"]
    made = CliRunner().invoke(app, words)
    assert isinstance(made.exception, TypeError)
    assert str(made.exception) == f"freeze: expected a list of strings, got {got}"
    assert not (tmp_path / "run").exists()
