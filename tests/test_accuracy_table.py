"""The accuracy experiment: its page from finished runs, what it skips, and a table that was cut short."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
pytest.importorskip("transformers", reason="the extra 'models' is not installed")

from typer.testing import CliRunner

from experiments import accuracy, accuracy_table, runs
from experiments.variants import BASE, REFERENCE, VARIANTS, Variant, choose
from jair import JAIRConfig, cost
from jair.commands import app


def result(variant: str, seed: int, right: float, gmac: float, **more: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": right,
        "compositional": right - 0.1,
        "gmac": gmac,
        "parameters": 2_000_000,
        "settings": {"stages": [{"sources": ["scenes"], "steps": 10}], "lr": 0.1},
        "machine": "2 cores",
        "commit": "0123456789abcdef",
        **more,
    }


def write(folder: Path, results: list[dict[str, Any]]) -> None:
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(results):
        (folder / "runs" / f"{number}.json").write_text(json.dumps(one))
    accuracy_table.write(folder)


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_page_has_means_and_spreads(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            result("ours", 1, 0.5, 0.06),
            result("ours", 0, 0.7, 0.06),
            result("concat", 0, 0.65, 0.12),
            result("1 iterations", 0, 0.25, 0.05),
        ],
    )
    page = (tmp_path / "README.md").read_text()
    header = ["model", "GMAC", "of concat", "parameters (M)", "accuracy %", "held-out %", "seeds"]
    ours = ["ours", "0.0600", "0.50", "2.00", "60.0 (50.0 to 70.0)", "50.0 (40.0 to 60.0)", "2"]
    one = ["1 iterations", "0.0500", "0.42", "2.00", "25.0 (25.0 to 25.0)", "15.0 (15.0 to 15.0)", "1"]
    concat = ["concat", "0.1200", "1.00", "2.00", "65.0 (65.0 to 65.0)", "55.0 (55.0 to 55.0)", "1"]
    rule = ["---", *["---:"] * 6]
    lesson = [["stage", "steps", "scenes/questions"], ["---", "---:", "---:"], ["1", "10", "100 %"]]
    assert rows(page) == [*lesson, header, rule, ours, concat, header, rule, ours, one]
    assert "**missed**. Ours has 0.50 of its operations and -5.0 points of accuracy." in page
    assert "Settings: lr 0.1. Machine: 2 cores. Commit: 0123456789ab." in page
    plot = ElementTree.parse(tmp_path / "accuracy.svg")
    written = {"".join(e.itertext()).strip() for e in plot.iter() if e.tag.endswith("text")}
    assert {"ours", "concat", "1 iterations", "0.65 of concat"} <= written


@pytest.mark.parametrize(
    ("ours", "gmac", "verdict"),
    [
        ([0.71, 0.79], 0.06, "**met**. Ours has 0.50 of its operations and +5.0 points of accuracy.\n"),
        (
            [0.69, 0.8],
            0.06,
            "**met**. Ours has 0.50 of its operations and +4.5 points of accuracy. Their seeds",
        ),
        ([0.71, 0.79], 0.08, "**missed**. Ours has 0.67 of its operations and +5.0 points of accuracy.\n"),
    ],
)
def test_the_aim(tmp_path: Path, ours: list[float], gmac: float, verdict: str) -> None:
    of_ours = [result("ours", seed, right, gmac) for seed, right in enumerate(ours)]
    write(tmp_path, [*of_ours, result("concat", 0, 0.7, 0.12)])
    assert verdict in (tmp_path / "README.md").read_text()


def test_the_plot_shows_means_with_their_range(tmp_path: Path) -> None:
    write(tmp_path, [result("ours", 0, 0.5, 0.06), result("ours", 1, 0.8, 0.06)])
    figure = accuracy_table.plot(accuracy_table.load(tmp_path), 0.4)
    assert figure.axes[0].lines[-1].get_ydata() == [40, 40]
    (container,) = figure.axes[0].containers
    line, _, (bar,) = container.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0.06], [pytest.approx(65)])
    assert bar.get_segments()[0][:, 1].tolist() == [pytest.approx(50), pytest.approx(80)]


def test_rows_are_those_of_the_papers_tables() -> None:
    configs = {variant.name: variant.config(BASE, 384) for variant in VARIANTS}
    assert {c.fusion for c in configs.values()} == {
        "joint_adaptive",
        "concat",
        "cross_attention",
        "perceiver",
        "cotokenization",
    }
    assert {c.resampler for c in configs.values()} == {"latent", "tokenlearner", "spatial"}
    assert {c.combination for c in configs.values()} == {"weighted", "residual", "none"}
    assert {c.iterations for c in configs.values()} == {1, 2, 4, 8}
    assert {c.num_latents for c in configs.values()} == {4, 8, 16, 32}
    assert {c.stream for c in configs.values()} == {"joint", "text"}
    assert cost.macs(configs["ours"]).total <= accuracy_table.AIM * cost.macs(configs[REFERENCE]).total


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--out", str(tmp_path), "--only", "mine"]) == 1
    assert capsys.readouterr().err.startswith("accuracy: --only: expected 'ours' or 'ours, stream text' or")
    assert accuracy.main(["--out", str(tmp_path), "--set", "dim"]) == 1
    assert capsys.readouterr().err == "accuracy: --set: expected key=value, got 'dim'\n"
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(tmp_path))}: expected at least one finished run, got none$"
    ):
        accuracy_table.write(tmp_path)
    assert [variant.name for variant in choose(["none", "ours"])] == ["ours", "none"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs two variants of eight steps, with a stand-in for the command jair."""
    monkeypatch.setattr(runs, "COMMAND", (sys.executable, str(Path(__file__).with_name("fake_jair.py"))))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "preset.json").write_text(json.dumps(JAIRConfig.preset("tiny").to_dict()))

    def run(*more: str) -> int:
        chosen = ("--only", "ours", "--only", "concat", "--seeds", "0", "--steps", "8", "--jobs", "2")
        return accuracy.main(["--out", str(tmp_path), *chosen, *more])

    return run


def calls(folder: Path, run: str) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "work" / run / "calls.jsonl").read_text().splitlines()]


def test_a_table_of_two_runs(tmp_path: Path, table: Callable[..., int]) -> None:
    assert table() == 0
    kept = json.loads((tmp_path / "runs" / "concat-seed0.json").read_text())
    config = JAIRConfig.preset("tiny", **BASE, fusion="concat")
    assert kept["config"] == config.to_dict()
    assert kept["gmac"] == cost.macs(config).total / 1e9
    assert kept["parameters"] == cost.parameters(config)
    assert (kept["accuracy"], kept["compositional"], kept["seed"]) == (0.75, 0.5, 0)
    losses = [1, 1 / 2, 1 / 3, 1, 1 / 2, 1 / 3, 1, 1 / 2]  # of stages of 3, 3 and 2 steps
    assert kept["curve"] == {"step": list(range(1, 9)), "value": losses}
    assert set(kept["versions"]) == {"python", "torch", "transformers", "jair-kernels"}
    stages = kept["settings"]["stages"]
    assert [stage["steps"] for stage in stages] == [3, 3, 2]
    folders = ["concat-seed0-stage1", "concat-seed0-stage2", "concat-seed0"]
    for i, (folder, stage) in enumerate(zip(folders, stages, strict=True)):
        (words,) = calls(tmp_path, folder)
        of = [words[j + 1] for j, word in enumerate(words) if word == "--source"]
        assert of == stage["sources"] == list(accuracy.lessons(8)[i].sources)
        assert words[words.index("--seed") + 1] == "0"
        assert ('fusion="concat"' in words, "--tokenizer" in words) == (i == 0, i == 0)
        if i > 0:
            before = tmp_path / "work" / folders[i - 1] / "checkpoint-00000003"
            assert words[words.index("--init") + 1] == str(before)
        assert words[words.index("--schedule") + 1] == ("cosine" if i == 2 else "constant")
        assert "--resume" not in words
    assert kept["train_seconds"] > 0
    page = (tmp_path / "README.md").read_text()
    assert [row[0] for row in rows(page) if row[-1] == "1"] == ["ours", "concat"]
    shown = rows(page)[:5]
    assert shown[0] == ["stage", "steps", *(f"scenes/{kind}" for kind in accuracy.LESSONS[0][1])]
    for row, stage, (_, weights) in zip(shown[2:], stages, accuracy.LESSONS, strict=True):
        shares = [f"{100 * weight / sum(weights.values()):.0f} %" for weight in weights.values()]
        assert row[1] == str(stage["steps"])
        assert dict(zip(shown[0][2:], row[2:], strict=True)) == {
            f"scenes/{kind}": share for kind, share in zip(weights, shares, strict=True)
        }
    assert "Guessing gets 40.0 % from the question alone, 45.0 % with a histogram of colours." in page


def test_a_table_that_was_cut_short_goes_on(
    tmp_path: Path, table: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work" / "die").touch()
    assert table() == 1
    assert "concat, seed 0: jair train: killed at step 2 (exit status 1)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    (tmp_path / "work" / "die").unlink()
    assert table() == 0
    assert "2 runs, 2 to do" in capsys.readouterr().err
    assert ["--resume" in words for words in calls(tmp_path, "ours-seed0-stage1")] == [False, True]
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}
    assert {name: result["train_seconds"] for name, result in kept.items()} == {
        "ours-seed0.json": None,
        "concat-seed0.json": None,
    }
    assert table() == 0  # nothing is left to do
    assert "2 runs, 0 to do" in capsys.readouterr().err
    assert len(calls(tmp_path, "ours-seed0")) == 1
    assert table("--lr", "0.5") == 1  # finished runs are of another plan
    path = tmp_path / "runs" / "ours-seed0.json"
    assert f"accuracy: {path}: expected a run with lr 0.5, got one with 0.0004" in capsys.readouterr().err


def test_a_row_with_more_steps(tmp_path: Path, table: Callable[..., int]) -> None:
    name = "ours, 1.9 times the steps"
    assert table("--only", name) == 0
    kept = json.loads((tmp_path / "runs" / "ours-1.9-times-the-steps-seed0.json").read_text())
    assert [stage["steps"] for stage in kept["settings"]["stages"]] == [6, 5, 4]  # of 15, not 8
    assert kept["variant"] == name
    page = (tmp_path / "README.md").read_text()
    budget = rows(page.partition("## As many operations in training")[2])
    assert [row[0] for row in budget[2:]] == ["ours", "concat", name]
    assert rows(page)[2][1] == "3"  # the lessons shown are those of the others


def test_a_row_is_trained_by_jair_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the real thing, in this process, and its report."""

    def call(arguments: Sequence[str], threads: int) -> str:
        outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
        return outcome.stdout

    monkeypatch.setattr(runs, "call", call)
    plan = runs.Plan(
        stages=(runs.Stage(("scenes",), 2),),
        val=("scenes",),
        batch_size=2,
        lr=1e-3,
        sampler="uniform",
        tokenizer="bytes",
        base=BASE,
        options=("--val-examples", "2"),
        test_examples=3,
    )
    variant = Variant("concat", ("fusion",), {"fusion": "concat"})
    run = accuracy._run(tmp_path, variant, 0, plan, 1, "cpu")
    runs.do(run)
    accuracy_table.write(tmp_path)
    kept = json.loads((tmp_path / "runs" / "concat-seed0.json").read_text())
    assert kept["config"]["fusion"] == "concat"
    assert 0 <= kept["accuracy"] <= 1
    assert sum(group["examples"] for group in kept["groups"].values()) == 3
    assert kept["curve"]["step"] == [1, 2]
    assert 3 < kept["curve"]["value"][0] < 12  # bytes drawn at random: log 384 = 5.95
    assert kept["validations"][-1]["step"] == 2
    assert rows((tmp_path / "README.md").read_text())[5][0] == "concat"
