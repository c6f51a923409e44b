"""Rows of fused_tokenlearner and its peers."""

from collections.abc import Callable

from benchmarks.shapes import Group

OP = "fused_tokenlearner"


def test_tokenlearner(group: Group, backend: str, record: Callable[[Group, str], None]) -> None:
    record(group, backend)
