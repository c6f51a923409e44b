"""Rows of fused_transformer_layer and its peers."""

from collections.abc import Callable

from benchmarks.shapes import Group

OP = "fused_transformer_layer"


def test_transformer_layer(group: Group, backend: str, record: Callable[[Group, str], None]) -> None:
    record(group, backend)
