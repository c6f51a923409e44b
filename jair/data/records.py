"""Files of records, lines or JSON, in which one that is odd costs only itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jair.data.sources import BadExample, Skipped, Source

Record = TypeVar("Record")


def parsed(
    entries: Iterable[tuple[str, Any]], parse: Callable[[Any, str], Record | None], skipped: Skipped
) -> Iterator[Record]:
    """parse(entry, name) of named entries: None is left out, what raises BadExample is counted."""
    for name, entry in entries:
        try:
            record = parse(entry, name)
        except BadExample as bad:
            skipped.add(bad.reason, bad.name)
            continue
        if record is not None:
            yield record


def told(source: Source) -> list[str]:
    """What a source has skipped, to be read: for each reason how many, and the first names. Meanwhile another
    thread may read from the source.
    """
    counts, names = dict(source.skipped.counts), source.skipped.names
    return [f"{source.name}: {n} skipped, {why}: {', '.join(names[why][:3])}" for why, n in counts.items()]


def lines(path: Path, skipped: Skipped) -> Iterator[tuple[str, tuple[int, str]]]:
    """The lines of a text file: FILE:NUMBER, then the number, from 1, and the line. One that is no UTF-8 is
    counted as "bad text".

    Raises:
        OSError: the file cannot be read.
    """
    # No splitlines: a line may have U+2028 and its like in it, or a carriage return.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            name = f"{path}:{number}"
            try:
                yield name, (number, utf8(line.rstrip("\r\n"), name))
            except BadExample as bad:
                skipped.add(bad.reason, bad.name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object.

    Raises:
        OSError: it is missing. ValueError: it is broken or has something else, by name.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, no UTF-8
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def json_list(path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """The entries of a list in a JSON file's object: FILE: KEY[INDEX], then the entry.

    Raises:
        OSError, ValueError: as `read_json`, or there is no such list.
    """
    return entries_of(read_json(path), path, key)


def entries_of(document: dict[str, Any], path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """As `json_list`, of a file that is read already."""
    entries = document.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list {key!r}, got {type(entries).__name__}")
    return ((f"{path}: {key}[{index}]", entry) for index, entry in enumerate(entries))


def field(entry: Any, key: str, name: str) -> str:
    """A record's text, or number as text.

    Raises:
        BadExample: there is none, or no UTF-8 can hold it.
    """
    found = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(found, (str, int, float)):
        raise BadExample(f"missing {key}", name)
    return utf8(str(found), name)


def utf8(text: str, name: str) -> str:
    """The text. JSON can write half a surrogate pair, at which tokenizers would fail.

    Raises:
        BadExample: no UTF-8 can hold it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadExample("bad text", name) from error
    return text


def file_name(text: str, name: str) -> str:
    """A file's name from a data set, which must not lead elsewhere.

    Raises:
        BadExample: it is none.
    """
    if not text or Path(text).name != text or "\0" in text:
        raise BadExample("bad file name", name)
    return text
