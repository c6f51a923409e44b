"""The encoder that the experiments start with: labels, questions, and the model that takes it over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="the extra 'models' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")

from safetensors.torch import load_file

from experiments import encoder
from experiments.variants import BASE
from jair import JAIR, JAIRConfig
from jair.data.scenes.world import ATTRIBUTES, Scene, Thing


def test_labels_say_what_is_where() -> None:
    scenes = encoder.Labelled("train", 0, 64, 8)
    things = (
        Thing("small", "striped", "red", "cross", 0.13, 0.5),
        Thing("large", "plain", "white", "circle", 0.99, 0),
    )
    label = scenes.label(Scene(things, 0.2))
    assert label.shape == (8, 8, 5)
    assert (label[..., 0] == 1).sum() == 2
    for thing, cell in zip(things, (label[4, 1], label[0, 7]), strict=True):
        said = {name: values[i] for (name, values), i in zip(ATTRIBUTES.items(), cell[1:], strict=True)}
        assert said == {name: getattr(thing, name) for name in ATTRIBUTES}


def test_losses() -> None:
    labels = torch.full((1, 2, 2, 5), -1)
    labels[0, 0, 1] = torch.tensor([1, 1, 2, 0, 4])
    logits = torch.randn(1, 2, 2, 18, dtype=torch.float64)
    loss, right = encoder.losses(logits, labels)
    presence = F.binary_cross_entropy_with_logits(
        logits[..., 0].flatten(), torch.tensor([0.0, 1, 0, 0]).double()
    )
    of_object = logits[0, 0, 1]
    starts = {"size": (1, 3, 1), "texture": (3, 6, 2), "colour": (6, 13, 0), "shape": (13, 18, 4)}
    want = encoder.PRESENCE * presence
    for name, (start, end, value) in starts.items():
        want = want - of_object[start:end].log_softmax(0)[value]
        assert right[name] == float(of_object[start:end].argmax() == value)
    torch.testing.assert_close(loss, want)
    assert right["object"] == ((logits[..., 0] > 0) == (labels[..., 0] == 1)).float().mean()


def test_a_model_starts_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encoder.main(["--out", str(tmp_path), "--steps", "2", "--batch-size", "2"]) == 0
    assert capsys.readouterr().out.startswith("object ")
    told = json.loads((tmp_path / "training.json").read_text())
    assert set(told["accuracy"]) == {"object", *ATTRIBUTES}
    model = JAIR(JAIRConfig.preset("tiny", image_encoder=str(tmp_path)))
    have, want = model.image_encoder.backbone.state_dict(), load_file(tmp_path / "model.safetensors")
    assert have.keys() >= want.keys()
    assert all(torch.equal(have[name], value) for name, value in want.items())


def test_the_one_of_the_experiments_sees() -> None:
    config = JAIRConfig.preset("tiny", **BASE)
    model = JAIR(config).eval()
    assert model.image_encoder.positions.shape == (64, 128)
    told = json.loads((Path(BASE["image_encoder"]) / "training.json").read_text())
    assert min(told["accuracy"].values()) > 0.99
