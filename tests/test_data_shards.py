"""Shards that are broken, cut or odd: what can be read is, the rest is counted and named."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL", reason="the extra 'models' is not installed")

from PIL import Image

from jair.data.sources import Source, SourceSpec, open_source

COUNT = 5


def picture(kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, kind)
    return buffer.getvalue()


def archive(files: list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples() -> list[tuple[str, bytes]]:
    return [
        part for i in range(COUNT) for part in ((f"{i}.jpg", picture()), (f"{i}.txt", f"text {i}".encode()))
    ]


def header(data: bytes, number: int) -> int:
    """Where a member's header begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()[number].offset


def opened(root: Path, data: bytes, **options: Any) -> Source:
    (root / "00000.tar").write_bytes(data)
    return open_source(SourceSpec.parse(f"webdataset:{root}"), "train", **options)


def flipped(data: bytes) -> bytes:
    at = header(data, 6) + 2
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


DAMAGE = {
    "header flipped": (flipped, "bad checksum"),
    "cut between members": (lambda data: data[: header(data, 6)], "empty header"),
    "cut in a header": (lambda data: data[: header(data, 6) + 100], "truncated header"),
    "cut in data": (lambda data: data[: header(data, 6) + 600], "unexpected end of data"),
    "a header of zeros": (
        lambda data: data[: header(data, 6)] + bytes(512) + data[header(data, 6) + 512 :],
        "expected zeros after the end of the archive, got data",
    ),
    "two archives in one file": (lambda data: archive(samples()[:6]) + data, "expected zeros after the end"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_counted_and_read_up_to_the_damage(damage: str, tmp_path: Path) -> None:
    spoil, message = DAMAGE[damage]
    data = spoil(archive(samples()))
    source = opened(tmp_path, data)
    assert [example.id for example in source.evaluation()] == ["0", "1", "2"]
    assert source.skipped.names == {"broken shard": [str(tmp_path / "00000.tar")]}
    streamed = opened(tmp_path, data)
    assert [streamed.next().id for _ in range(6)] == ["0", "1", "2"] * 2
    assert streamed.skipped.counts == {"broken shard": 1}
    with pytest.raises(ValueError, match=rf"^webdataset/caption: .*00000\.tar: broken shard: .*{message}"):
        list(opened(tmp_path, data, strict=True).evaluation())


def test_what_is_no_archive_is_a_broken_shard(tmp_path: Path) -> None:
    for data in (b"", b"hello" * 400, archive(samples())[:300]):
        source = opened(tmp_path, data)
        assert list(source.evaluation()) == []
        assert source.skipped.counts == {"broken shard": 1}


def test_whole_archives_of_all_writers_are_whole(tmp_path: Path) -> None:
    whole = archive(samples())
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        last = tar.getmembers()[-1]
    end = last.offset + 1024  # header and one block of data
    long = [("a" * 150 + name, data) for name, data in samples()]
    kinds = [
        whole,
        whole[: end + 512],  # one block of zeros instead of two, no record filled up
        whole[: end + 1024],
        whole + bytes(1 << 20),
        archive(samples(), tarfile.PAX_FORMAT),
        archive(samples(), tarfile.USTAR_FORMAT),
        archive(long),
        archive(long, tarfile.PAX_FORMAT),
        gzip.compress(whole),
    ]
    for data in kinds:
        source = opened(tmp_path, data, strict=True)
        assert [example.answer for example in source.evaluation()] == [f"text {i}" for i in range(COUNT)]
        assert source.skipped.total == 0


def test_a_second_file_of_one_name_costs_only_itself(tmp_path: Path) -> None:
    files = samples()
    files.insert(2, ("0.txt", b"another text"))
    source = opened(tmp_path, archive(files))
    assert [example.answer for example in source.evaluation()] == [f"text {i}" for i in range(COUNT)]
    assert source.skipped.names == {"duplicate file": [f"{tmp_path / '00000.tar'}/0.txt"]}
    with pytest.raises(ValueError, match=r"00000\.tar/0\.txt: duplicate file"):
        list(opened(tmp_path, archive(files), strict=True).evaluation())


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("9.jpg", picture()), ("9.json", b'{"caption": null}')], "missing caption"),
        ([("9.jpg", picture()), ("9.json", b"[1]")], "missing caption"),
        ([("9.jpg", picture()), ("9.json", b"{}")], "missing caption"),
        ([("9.jpg", picture()), ("9.json", b"[" * 100_000)], "missing caption"),
        ([("9.jpg", picture()), ("9.json", b'{"caption": "\\ud800"}')], "bad text"),
        ([("9.jpg", picture()), ("9.json", b'{"caption": " "}')], "empty caption"),
        ([("9.jpg", picture()), ("9.txt", b"caf\xe9")], "missing caption"),
        ([("9.txt", b"a text")], "missing image"),
    ],
)
def test_an_odd_sample_costs_only_itself(files: list[tuple[str, bytes]], reason: str, tmp_path: Path) -> None:
    data = archive([*samples()[:2], *files, *samples()[2:]])
    source = opened(tmp_path, data)
    assert [example.id for example in source.evaluation()] == [str(i) for i in range(COUNT)]
    assert source.skipped.names == {reason: [f"{tmp_path / '00000.tar'}/9"]}
    with pytest.raises(ValueError, match=rf"00000\.tar/9: {reason}$"):
        list(opened(tmp_path, data, strict=True).evaluation())


def test_pictures_of_all_kinds(tmp_path: Path) -> None:
    kinds = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
    kinds |= {"tif": "TIFF", "tiff": "TIFF"}
    files = [
        part
        for i, (ending, kind) in enumerate(kinds.items())
        for part in ((f"{i}.{ending}", picture(kind)), (f"{i}.json", b'{"caption": "red"}'))
    ]
    found = list(opened(tmp_path, archive(files), strict=True).evaluation())
    assert [example.answer for example in found] == ["red"] * len(kinds)
    assert all(abs(example.image.getpixel((3, 3))[0] - 255) < 3 for example in found)


def test_a_split_is_not_taken_from_another(tmp_path: Path) -> None:
    opened(tmp_path, archive(samples()))
    spec = SourceSpec.parse(f"webdataset:{tmp_path}")
    for split in ("val", "test"):
        with pytest.raises(ValueError, match=rf"^split: expected a folder '{split}' in {tmp_path}, or a pat"):
            open_source(spec, split)
    pattern = SourceSpec.parse(f"webdataset:{tmp_path}/*.tar")
    assert [example.id for example in open_source(pattern, "val").evaluation(2)] == ["0", "1"]
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="expected shards"):
        open_source(spec, "val")
    (tmp_path / "val" / "0.tar").write_bytes(archive([("v.jpg", picture()), ("v.txt", b"text")]))
    assert [example.id for example in open_source(spec, "val").evaluation()] == ["v"]
    assert [example.id for example in open_source(spec, "train").evaluation(1)] == ["0"]


@pytest.mark.parametrize("task", ["caption", "matching"])
@pytest.mark.parametrize("limit", [None, 3])
def test_ranks_share_an_evaluation(task: str, limit: int | None, tmp_path: Path) -> None:
    """Also behind what cannot be read, and with the same false captions."""
    files = [part for part in samples() if part[0] != "1.jpg"]
    opened(tmp_path, archive([("1.jpg", b"no picture"), *files]))
    spec = SourceSpec.parse(f"webdataset:{tmp_path},task={task}")
    whole, *shares = (
        [(e.id, e.prompt, e.answer) for e in open_source(spec, "train").evaluation(limit, **share)]
        for share in ({}, {"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2})
    )
    assert len(whole) == (COUNT - 1 if limit is None else limit)
    assert shares == [whole[0::2], whole[1::2]]
