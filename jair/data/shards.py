"""Webdataset shards as img2dataset writes them: 00000.tar, .. with KEY.jpg, KEY.txt, KEY.json.

A rank reads every world_size-th shard, in an order that changes from epoch to epoch. It loads them in one
thread, see `jair.training.batches`: there are no workers of a DataLoader among which they were to be split.
Members are read in memory; their names are never used as paths.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from jair.data.captions import captioned, one_line
from jair.data.examples import Example
from jair.data.images import decode_image
from jair.data.records import field
from jair.data.sources import BadExample, Skipped, SourceSpec
from jair.encoders import optional_import

# Files of a sample; the first one counts.
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
POOL = 64  # captions met last, from which false ones are taken
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset leaves out


class _Member(tarfile.TarInfo):
    """A header. tarfile takes one that is broken or cut for the end of the archive: here it is an error."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"expected a header or the end of the archive, got {error}") from error


class ShardSource:
    """A stream over shards; the state is epoch, shard and position in it.

    Args:
        name, task: as in `Source`. paths: the shards. seed, rank, world_size, strict: as in `open_source`.
        size: of the data set; None = 10,000 a shard, which is img2dataset's default.

    Raises:
        ValueError: there are fewer shards than ranks.
    """

    def __init__(
        self,
        name: str,
        task: str,
        paths: list[Path],
        *,
        seed: int = 0,
        strict: bool = False,
        rank: int = 0,
        world_size: int = 1,
        size: int | None = None,
    ) -> None:
        if len(paths) < world_size:
            raise ValueError(
                f"{name}: expected at least {world_size} shards, one a process, got {len(paths)}"
            )
        self.name, self.task = name, task
        self.metric, self.answered = "caption" if task in ("caption", "completion") else "exact", True
        self.size = size or 10_000 * len(paths)
        self.skipped = Skipped()
        self._paths, self._seed, self._strict = paths, seed, strict
        self._rank, self._world_size = rank, world_size
        self._epoch = self._shard = self._position = 0
        self._open: Iterator[dict[str, Any]] | None = None
        self._pool: list[str] = []

    def next(self) -> Example:
        """As in `Source`.

        Raises:
            ValueError: two epochs have no example that can be read, or strict and this one cannot.
        """
        start = self._epoch
        while self._epoch <= start + 2:
            sample = self._next_sample()
            if sample is None:
                continue
            try:
                return self._make(sample, np.random.default_rng([self._seed, self._epoch, self._position]))
            except BadExample as bad:
                self._skip(bad)
        got = f"none in a whole epoch{self.skipped.first}"
        raise ValueError(f"{self.name}: expected examples that can be read, got {got}")

    def _next_sample(self) -> dict[str, Any] | None:
        """None at the end of a shard."""
        order = Random(f"{self._seed}/{self._epoch}").sample(self._paths, len(self._paths))
        mine = order[self._rank :: self._world_size]
        if self._open is None:
            self._open = self._samples(mine[self._shard])
            for _ in range(self._position):
                next(self._open, None)
        sample = next(self._open, None)
        if sample is not None:
            self._position += 1
            return sample
        self._open, self._position, self._shard = None, 0, self._shard + 1
        if self._shard == len(mine):
            self._epoch, self._shard = self._epoch + 1, 0
        return None

    def _samples(self, path: Path) -> Iterator[dict[str, Any]]:
        """The members of a shard, grouped by key, as long as it can be read."""
        readers = optional_import("webdataset.tariterators", "train")
        yield from readers.group_by_keys(self._distinct(path, readers.base_plus_ext))

    def _distinct(
        self, path: Path, split: Callable[[str], tuple[str | None, str]]
    ) -> Iterator[dict[str, Any]]:
        """The members without those whose sample has another of the same kind, which grouping refuses."""
        of, kinds = "", set[str]()
        for name, data in self._members(path):
            key, kind = split(name)
            if key is None:
                continue
            if key != of:
                of, kinds = key, set()
            if kind.lower() in kinds:
                self._skip(BadExample("duplicate file", f"{path}/{name}"))
                continue
            kinds.add(kind.lower())
            yield {"fname": name, "data": data, "__url__": str(path)}

    def _members(self, path: Path) -> Iterator[tuple[str, bytes]]:
        try:
            with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
                    if member.isreg() and not _META.match(member.name):
                        data = tar.extractfile(member)
                        assert data is not None
                        yield member.name, data.read()
                while rest := tar.fileobj.read(1 << 20):
                    if rest.strip(b"\0"):
                        raise tarfile.ReadError("expected zeros after the end of the archive, got data")
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            self._skip(BadExample("broken shard", str(path)), error)

    def _make(self, sample: dict[str, Any], generator: np.random.Generator) -> Example:
        name = f"{sample['__url__']}/{sample['__key__']}"
        data = next((sample[kind] for kind in PICTURES if kind in sample), None)
        if data is None:
            raise BadExample("missing image", name)
        caption = _caption(sample, name)
        image = decode_image(data, name)
        rng = Random(int(generator.integers(2**62)))
        example = captioned(self.task, image, (caption,), self._pool, str(sample["__key__"]), rng)
        self._pool = [*self._pool[-POOL + 1 :], caption]
        return example

    def _skip(self, bad: BadExample, cause: Exception | None = None) -> None:
        if self._strict:
            raise ValueError(f"{self.name}: {bad}" + (f": {cause}" if cause else "")) from (cause or bad)
        self.skipped.add(bad.reason, bad.name)

    def state_dict(self) -> dict[str, Any]:
        """As in `Source`."""
        place = {"epoch": self._epoch, "shard": self._shard, "position": self._position}
        return {**place, "pool": list(self._pool)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `Source`; what is before the position in its shard is read again."""
        self._epoch, self._shard, self._position = (int(state[k]) for k in ("epoch", "shard", "position"))
        self._pool, self._open = list(state["pool"]), None

    def evaluation(
        self, limit: int | None = None, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Example]:
        """As in `Source`, shard by shard. All ranks read all: the limit counts what could be read, and false
        captions are from the examples before.
        """
        count, self._pool = 0, []
        for path in self._paths:
            for number, sample in enumerate(self._samples(path)):
                if limit is not None and count >= limit:
                    return
                try:
                    example = self._make(sample, np.random.default_rng([self._seed, number]))
                except BadExample as bad:
                    self._skip(bad)
                    continue
                if count % world_size == rank:
                    yield example
                count += 1


def _caption(sample: dict[str, Any], name: str) -> str:
    try:
        entry = {"caption": sample["txt"].decode()} if "txt" in sample else json.loads(sample["json"])
    except (KeyError, ValueError, RecursionError) as error:
        raise BadExample("missing caption", name) from error
    return one_line(field(entry, "caption", name), name)


def open_source(spec: SourceSpec, split: str, **shares: Any) -> ShardSource:
    """As in `jair.data.sources.open_source`.

    PATH is a folder with a folder of *.tar for each split; *.tar in the folder itself are the split "train".
    Or it is a pattern of shards, which are given for every split.

    Raises:
        ValueError: there are no shards, or not of this split.
    """
    folder = Path(spec.path)
    if not folder.is_dir():
        paths = [Path(path) for path in sorted(glob.glob(spec.path))]
    elif (folder / split).is_dir():
        paths = sorted((folder / split).glob("*.tar"))
    elif split == "train":
        paths = sorted(folder.glob("*.tar"))
    else:
        raise ValueError(
            f"split: expected a folder {split!r} in {folder}, or a pattern of shards as the path, got neither"
        )
    if not paths:
        raise ValueError(f"{spec.name}: expected shards (*.tar) at {spec.path}, got none")
    return ShardSource(spec.name, spec.chosen_task, paths, **shares)
