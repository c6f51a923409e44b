"""Rows of fused_gated_fusion and its peers."""

from collections.abc import Callable

from benchmarks.shapes import Group

OP = "fused_gated_fusion"


def test_gated_fusion(group: Group, backend: str, record: Callable[[Group, str], None]) -> None:
    record(group, backend)
