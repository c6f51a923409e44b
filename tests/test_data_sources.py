"""Names of sources: what differs between those of one kind and task, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from jair.data.sources import SourceSpec, open_source


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["cc:/data/cc3m", "cc:/data/cc12m"], ["cc/caption:cc3m", "cc/caption:cc12m"]),
        (["cc:/cc3m/full", "cc:/cc12m/full,weight=2"], ["cc/caption:cc3m", "cc/caption:cc12m"]),
        (["cc:/data/a", "cc:/data/b,task=masked"], ["cc/caption", "cc/masked"]),
        (["cc:/data/a", "gqa:/data/a", "scenes"], ["cc/caption", "gqa/questions", "scenes/questions"]),
        (
            ["cc:a/x", "cc:b,task=masked", "cc:b/x", "cc:a/y"],
            ["cc/caption:a/x", "cc/masked", "cc/caption:b/x", "cc/caption:a/y"],
        ),
        (
            ["webdataset:/data/a/*.tar", "webdataset:/data/b/*.tar"],
            ["webdataset/caption:a", "webdataset/caption:b"],
        ),
        (["cc:a", "cc:b/a", "cc:/b/a"], ["cc/caption:a", "cc/caption:b/a", "cc/caption:/b/a"]),
        (["cc:.", "cc:a"], ["cc/caption:.", "cc/caption:a"]),
        (["cc:a", "cc:a/,weight=2"], ["cc/caption", "cc/caption"]),
        (["cc:a", "cc:a", "cc:b"], ["cc/caption:a", "cc/caption:a", "cc/caption:b"]),
        (["scenes", "scenes,weight=2"], ["scenes/questions", "scenes/questions"]),
        ([], []),
    ],
)
def test_names_tell_sources_apart(texts: list[str], names: list[str]) -> None:
    specs = SourceSpec.parse_all(texts)
    assert [spec.name for spec in specs] == names
    alone = [SourceSpec.parse(text) for text in texts]
    assert [(s.kind, s.path, s.task, s.weight) for s in specs] == [
        (s.kind, s.path, s.task, s.weight) for s in alone
    ]
    assert all(":" not in spec.name for spec in alone)


def test_an_opened_source_has_its_name(tmp_path: Path) -> None:
    for folder in ("cc3m", "cc12m"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.tsv").write_text("a dog\thttp://a\n")
    specs = SourceSpec.parse_all([f"cc:{tmp_path / folder}" for folder in ("cc3m", "cc12m")])
    assert [open_source(spec, "train").name for spec in specs] == ["cc/caption:cc3m", "cc/caption:cc12m"]


def test_ranks_share_an_evaluation() -> None:
    pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
    source = open_source(SourceSpec.parse("scenes"), "val")
    whole = [(example.id, example.prompt) for example in source.evaluation(7)]
    for rank in range(3):
        share = [(example.id, example.prompt) for example in source.evaluation(7, rank=rank, world_size=3)]
        assert share == whole[rank::3]
