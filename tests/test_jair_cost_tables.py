"""The cost tables: what their rows are, the paper's figures, the committed counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jair import JAIRConfig

pytest.importorskip("transformers", reason="the extra 'models' is not installed")
from jair import cost, cost_report, cost_tables
from jair.memory import memories, memory

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "cost"
SIZES_OF_LARGE = {"dim": 1024, "num_heads": 16, "mlp_dim": 2816, "encoder_layers": 8, "decoder_layers": 8}


def said(table: str, label: str) -> dict[str, object]:
    """The fields that a row's label and its table tell."""
    ours = {"fusion": "joint_adaptive"}
    name, _, rest = label.partition(", ")
    fusion = {"fusion": "joint_adaptive" if name == "ours" else name}
    if table == "Fusion":
        return {**fusion, **({"stream": "text"} if rest == "stream text" else {})}
    if table == "Image size":
        return {**fusion, "image_size": int(rest.split()[0])}
    if table == "Text length":
        return fusion
    if table == "Model size":
        of = said("Fusion", rest)
        return {**SIZES_OF_LARGE, **of} if name == "large" else of
    if table == "Layers of the stack":
        return {"num_layers": int(label)}
    if table == "Resampler of the image":
        return {**ours, "resampler": label}
    field = {"Iterations": "iterations", "Tokens of each modality": "num_latents"}[table]
    return {**ours, field: int(label)}


T5 = {"model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 96, "num_layers": 1, "num_heads": 12}
OF_T5 = {"text_encoder": "t5", "text_encoder_config": {**T5, "vocab_size": 32128}}


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("tiny", {"resampler": "spatial"}),
        ("tiny", {"fusion": "concat", "num_latents": 8}),
        ("tiny", {"fusion": "cotokenization", "iterations": 3, "num_layers": 1}),
        ("tiny", {"stream": "text", "image_size": 96}),
        ("base", {"num_heads": 6}),
        ("base", {"dim": 780, "fusion": "perceiver"}),
        ("base", OF_T5),
    ],
    ids=str,
)
def test_a_row_is_what_its_label_says(preset: str, changes: dict[str, object]) -> None:
    rows = cost_tables.count(preset, changes, memory_of=())
    shown = "" if preset == "tiny" else "base" if changes is OF_T5 else ("base", "large")
    assert [(row.table, row.label) for row in rows] == [
        (table, row.label)
        for table, of_table in cost_tables.TABLES.items()
        for row in of_table
        if table != "Model size" or (shown and row.label.startswith(shown))
    ]
    for row in rows:
        config = JAIRConfig.preset(preset, **{**changes, **said(row.table, row.label)})
        words = int(row.label.split()[1]) if row.table == "Text length" else None
        assert row.macs == cost.macs(config, words).total, (row.table, row.label)


def test_what_does_not_fit_the_preset_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="text_encoder: expected a checkpoint with d_model = 1024"):
        cost_tables.count("base", {**OF_T5, "dim": 1024, "num_heads": 16}, memory_of=())


def test_the_papers_figures_stand_beside_base_alone() -> None:
    costs = cost_tables.count(memory_of=())
    by_label = {(row.table, row.label): row for row in costs}
    assert by_label["Fusion", "concat"].paper == 58.4
    assert by_label["Fusion", "concat"].difference == pytest.approx(60.7 / 58.4 - 1, abs=1e-3)
    # What our decisions were made for: the published counts to 8 %, but two, of which see the limits.
    far = {key: row.difference for key, row in by_label.items() if abs(row.difference or 0) > 0.085}
    assert sorted(far) == [("Layers of the stack", "16"), ("Tokens of each modality", "32")]
    assert all(row.paper is None for row in cost_tables.count("tiny", memory_of=()))


def test_a_table_of_memory() -> None:
    changes = {"max_text_length": 8, "num_layers": 1}
    costs = cost_tables.count("tiny", changes, memory_of=("Iterations",))
    assert not [row for row in costs if row.table == "Text length"]  # no text of 10 words fits
    assert all(bool(row.saved) == (row.table == "Iterations") for row in costs)
    rows = [row for row in costs if row.table == "Iterations"]
    assert [row.label for row in rows] == ["1", "2", "4", "8"]
    want = memory(JAIRConfig.preset("tiny", **changes, iterations=8))
    assert (rows[3].saved["fused"], rows[3].peak["fused"]) == (want.saved, want.peak)
    assert rows[3].saved["fused"] < rows[3].saved["plain"]
    page = cost_report.render(costs)
    assert f"| 8 | {rows[3].macs / 1e9:.3g} |" in page
    assert f"| {want.saved / 2**20:.0f} MiB |" in page


def test_the_committed_counts_are_todays() -> None:
    committed = json.loads((RESULTS / "cost.json").read_text())
    today = [row.to_dict() for row in cost_tables.count(memory_of=("Fusion",))]
    for old, new in zip(committed, today, strict=True):
        assert (old if new["saved"] else {**old, "saved": {}, "peak": {}}) == new


@pytest.mark.parametrize("label", ["ours, 384 px", "ours, 448 px", "concat, 384 px"])
def test_the_committed_memory_of_large_images_is_todays(label: str) -> None:
    row = next(row for row in cost_report.read(RESULTS) if (row.table, row.label) == ("Image size", label))
    config = JAIRConfig.preset("base", **said("Image size", label))
    today = dict(
        zip(cost_tables.BACKENDS, memories(config, tuple(cost_tables.BACKENDS.values())), strict=True)
    )
    assert row.saved == {name: size.saved for name, size in today.items()}
    assert row.peak == {name: size.peak for name, size in today.items()}


def test_the_committed_page_shows_the_committed_counts() -> None:
    page = cost_report.render(cost_report.read(RESULTS), cost_report.PLOT)
    assert (RESULTS / "README.md").read_text() == page
