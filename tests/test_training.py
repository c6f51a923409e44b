"""jair train: resumed runs equal unbroken ones bit for bit; processes, parts of batches, errors."""

from __future__ import annotations

import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("tensorboard", reason="the extra 'train' is not installed")
from safetensors.torch import load_file
from training_runs import SMALL, VIT, arguments, records, run, start
from typer.testing import CliRunner

from jair import JAIR, AdaptiveSampler, JAIRConfig
from jair.commands import app
from jair.training import checkpoint
from jair.training.parameters import freeze

STEPS = ("--steps", "8", "--checkpoint-every", "3")
STEPS += ("--val", "scenes", "--val-every", "4", "--val-examples", "6")
ALL = ("--ema", "0.8", "--accumulate", "2", "--augment", "--sampler", "odm")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    printed = run(arguments(out, *STEPS, *ALL))
    assert printed.strip() == str(out / "checkpoint-00000008")
    return out


def assert_equal(have: Path, want: Path) -> None:
    one, other = checkpoint.newest(have), checkpoint.newest(want)
    assert one is not None
    assert other is not None
    for file in ("training.safetensors", "model.safetensors"):
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name
    assert json.loads((one / "state.json").read_text()) == json.loads((other / "state.json").read_text())
    assert records(have) == records(want)


def test_log_and_checkpoints(unbroken: Path) -> None:
    found = records(unbroken)
    steps = [record for record in found if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert [record["step"] for record in found if "val_loss" in record] == [4, 8]
    names = ["scenes/questions", "scenes/count", "scenes/caption"]
    for record in steps:
        assert list(record["probabilities"]) == names
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert set(record["losses"]) <= set(names)
    assert [path.name for path in sorted(unbroken.glob("checkpoint-*"))] == [
        "checkpoint-00000006",
        "checkpoint-00000008",
    ]
    saved = checkpoint.resolve(unbroken)
    model = JAIR.from_pretrained(saved)
    averaged = load_file(saved / "training.safetensors")
    assert torch.equal(model.embedding.weight, averaged["average.embedding.weight"])
    assert not torch.equal(model.embedding.weight, averaged["weights.embedding.weight"])
    assert list((unbroken / "tensorboard").iterdir())


def test_logged_probabilities_are_those_of_the_draw(unbroken: Path) -> None:
    """Step s is drawn when step s - 1 begins, with what step s - 2 has left."""
    steps = [record for record in records(unbroken) if "loss" in record]
    sampler = AdaptiveSampler([1, 1, 1], "odm")
    left = [sampler.probabilities.tolist()]
    for record in steps:
        losses = [record["losses"].get(name, 0.0) for name in record["probabilities"]]
        seen = [name in record["losses"] for name in record["probabilities"]]
        sampler.update(losses, seen)
        left.append(sampler.probabilities.tolist())
    drawn_with = [list(record["probabilities"].values()) for record in steps]
    assert drawn_with == [left[0], *left[:-2]]
    assert left[0] != left[-3]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_stopped_run_goes_on_bit_for_bit(stop: signal.Signals, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = arguments(out, *STEPS, *ALL)
    process = start(words)
    log = out / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count('"loss"') >= 4):
        time.sleep(0.01)
    process.send_signal(stop)
    _, err = process.communicate(timeout=120)
    done = len([record for record in records(out) if "loss" in record])
    if stop == signal.SIGTERM and done < 8:
        assert process.returncode == 128 + signal.SIGTERM
        assert f"stopped by SIGTERM after step {done}; --resume goes on from there" in err
    run([*words, "--resume"])
    assert_equal(out, unbroken)


def test_a_damaged_checkpoint_is_passed_over(unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(arguments(out, *STEPS, *ALL))
    newest = out / "checkpoint-00000008"
    file = newest / "training.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert not checkpoint.is_whole(newest)
    assert checkpoint.newest(out) == out / "checkpoint-00000006"
    run([*arguments(out, *STEPS, *ALL), "--resume"])
    assert_equal(out, unbroken)


def test_several_validation_sources(tmp_path: Path) -> None:
    out = tmp_path / "run"
    held = ("scenes", "scenes,task=count", "scenes,task=caption")
    words = [word for source in held for word in ("--val", source)]
    run(arguments(out, "--steps", "1", "--val-examples", "5", *words))
    last = records(out)[-1]
    for each, mean in (("val_losses", "val_loss"), ("val_accuracies", "val_accuracy")):
        assert list(last[each]) == ["scenes/questions", "scenes/count", "scenes/caption"]
        assert last[mean] == pytest.approx(sum(last[each].values()) / 3)
    alone = tmp_path / "alone"
    run(arguments(alone, "--steps", "1", "--val-examples", "5", "--val", "scenes,task=count"))
    assert records(alone)[-1]["val_loss"] == last["val_losses"]["scenes/count"]


@pytest.mark.parametrize("tokenizer", ["data", "bytes"])
def test_a_run_starts_from_a_saved_model(tokenizer: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(arguments(first, "--steps", "2", "--tokenizer", tokenizer, dim=32))
    options = ["--init", str(first), "--source", "scenes,task=count", "--batch-size", "6", "--lr", "1e-9"]
    words = ["train", str(second), *options]
    run([*words, "--steps", "1"])
    saved, went_on = (checkpoint.resolve(folder) for folder in (first, second))
    for file in ("config.json", *(["tokenizer.json"] if tokenizer == "data" else [])):
        assert json.loads((saved / file).read_text()) == json.loads((went_on / file).read_text())
    for name, value in weights(first).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(weights(second)[name], value, rtol=1e-5, atol=1e-7)
    process = start(["train", str(tmp_path / "third"), *options, "--set", "mlp_dim=8"])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    message = r"init: expected \S+fc1.weight of shape \[8, 32\] in (\S+), got \[16, 32\]$"
    told = re.search(message, err.strip())
    assert told is not None
    assert told.group(1) == str(saved)
    first.rename(tmp_path / "gone")  # a run that goes on needs its own checkpoints alone
    run([*words, "--steps", "2", "--resume"])
    assert checkpoint.resolve(second).name == "checkpoint-00000002"


def test_frozen_modules_stay_as_they_are(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(arguments(first, "--steps", "2", dim=32))
    names = ("image_encoder.backbone", "text_encoder.layers.0")
    words = [word for name in names for word in ("--freeze", name)]
    options = ["--init", str(first), "--source", "scenes", "--batch-size", "6", *words]
    run(["train", str(second), *options, "--steps", "1"])
    run(["train", str(second), *options, "--steps", "2", "--resume"])
    before, after = weights(first), weights(second)
    for name, value in before.items():
        held = name.startswith(tuple(f"{module}." for module in names))
        # Of the keys' biases the gradient is zero, that of a gate with nothing to add may be.
        if held or "weight" in name or "running" in name:
            assert torch.equal(after[name], value) == held, name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("image_encoder", "eyes"), "freeze: expected modules of the model like 'image_encoder', got 'eyes'"),
        (("",), "freeze: expected modules of the model like 'image_encoder', got ''"),
        (
            ("image_encoder", "embedding", "text_encoder", "fusion", "fused_norm", "decoder"),
            "freeze: expected to leave something to train, got image_encoder, embedding, .* decoder",
        ),
    ],
)
def test_modules_that_cannot_be_frozen(names: tuple[str, ...], message: str) -> None:
    model = JAIR(JAIRConfig.preset("tiny", **SMALL))
    with pytest.raises(ValueError, match=message):
        freeze(model, names)


SHORT = ("--steps", "3", "--val", "scenes", "--val-every", "3", "--val-examples", "6")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, whole batches."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run(arguments(out, *SHORT, image_encoder_config=VIT))
    return out


def assert_close(ours: dict[str, object], theirs: dict[str, object], rtol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in ("step", "loss", "grad_norm", "val_loss", "val_accuracy"):
        if name in theirs:
            assert ours[name] == pytest.approx(theirs[name], rel=rtol), name


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.resolve(out) / "model.safetensors")


def test_parts_of_a_batch_add_up(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(arguments(out, *SHORT, "--accumulate", "3", image_encoder_config=VIT))
    for ours, theirs in zip(records(out), records(alone), strict=True):
        assert_close(ours, theirs, 1e-5)
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(out)[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frozen", [(), ("text_encoder", "decoder.layers.0")], ids=["all", "frozen"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_one(strategy: str, frozen: tuple[str, ...], tmp_path: Path) -> None:
    """The same examples a step: processes take every second one of one source's stream."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = (*SHORT, "--source", "scenes", "--sampler", "uniform", "--strategy", strategy)
    options += tuple(word for name in frozen for word in ("--freeze", name))
    run(arguments(one, *options, image_encoder_config=VIT))
    run(arguments(two, *options, image_encoder_config=VIT), processes=2)
    for ours, theirs in zip(records(two), records(one), strict=True):
        assert_close(ours, theirs, 1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-4)
    run([*arguments(two, *options, image_encoder_config=VIT), "--resume", "--steps", "4"], processes=2)
    assert [record["step"] for record in records(two) if "loss" in record] == [1, 2, 3, 4]


def test_shards_are_written_and_read_by_each_process(tmp_path: Path) -> None:
    """A run on two processes that was interrupted, and one that was not, with batch norms and odd sizes."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    options = ("--source", "scenes", "--strategy", "fsdp", "--schedule", "constant", "--lr", "0.01")
    run([*arguments(once, *options, dim=18), "--steps", "3"], processes=2)
    run([*arguments(twice, *options, dim=18), "--steps", "2"], processes=2)
    folder = checkpoint.resolve(twice)
    assert len(list((folder / checkpoint.SHARDS).glob("*.safetensors"))) == 2
    apart = {name for file in (folder / checkpoint.SHARDS).iterdir() for name in load_file(file)}
    whole = load_file(folder / "training.safetensors")
    assert {"weights.embedding.weight", "optimizer.embedding.weight.exp_avg"} <= apart
    assert "random" in whole
    assert not apart & set(whole)
    run([*arguments(twice, *options, dim=18), "--steps", "3", "--resume"], processes=2)
    assert records(twice) == records(once)
    assert all(torch.equal(value, weights(twice)[name]) for name, value in weights(once).items())
    assert not [path for path in twice.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sampler", "best"), "jair: sampler: expected 'difficulty' or"),
        (("--seed", "-1"), "jair: seed: expected an int >= 0, got -1"),
        (("--config", "absent.json"), "jair: [Errno 2] No such file or directory: 'absent.json'"),
        (("--source", "gqa:absent"), "jair: "),
    ],
)
def test_errors_are_one_line(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    process = start(arguments(tmp_path / "run", "--steps", "1", *options))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(message), err


def test_a_run_in_another_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(CliRunner().invoke, app, arguments(tmp_path / "run", "--steps", "1")).result()
    assert made.exit_code == 0, made.output
    assert checkpoint.resolve(tmp_path / "run").name == "checkpoint-00000001"


def test_an_occupied_folder_needs_resume(unbroken: Path) -> None:
    process = start(arguments(unbroken, *STEPS, *ALL))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "expected an empty or new folder, or --resume, got one with files" in err
    process = start([*arguments(unbroken, *STEPS, *ALL, "--lr", "0.5"), "--resume"])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    name = checkpoint.resolve(unbroken)
    assert f"jair: --resume: expected lr = 0.001 as in {name}, got 0.5" in err
