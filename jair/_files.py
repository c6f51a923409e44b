"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which it replaces when the block ends, or is removed if that fails.

    A reader, a killed process or a full disk meets the old file or the new one. Folders above are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    written = Path(name)
    try:
        yield written
        mode = 0o666 & ~_umask()  # mkstemp's files are for their owner alone
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.chmod(mode)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, in UTF-8, see `replacing`."""
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
