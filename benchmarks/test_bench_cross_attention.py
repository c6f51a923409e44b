"""Rows of fused_cross_attention and its peers."""

from collections.abc import Callable

from benchmarks.shapes import Group

OP = "fused_cross_attention"


def test_cross_attention(group: Group, backend: str, record: Callable[[Group, str], None]) -> None:
    record(group, backend)
