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


def check_file(name: str, path: Path) -> None:
    """That `write_text` could write there, before the work whose result it is to take.

    Raises:
        ValueError: a folder, or a place where no file can be made, under the argument's name.
    """
    if path.is_dir():
        raise ValueError(f"{name}: expected a file to write, got the folder {path}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: expected a file in a folder that can be written, got {path}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
