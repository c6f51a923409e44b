"""Rows of fused_tokenfuser and its peers."""

from collections.abc import Callable

from benchmarks.shapes import Group

OP = "fused_tokenfuser"


def test_tokenfuser(group: Group, backend: str, record: Callable[[Group, str], None]) -> None:
    record(group, backend)
