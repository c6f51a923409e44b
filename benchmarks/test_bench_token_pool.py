"""Rows of fused_token_pool and its peers."""

from collections.abc import Callable

from benchmarks.shapes import Group

OP = "fused_token_pool"


def test_token_pool(group: Group, backend: str, record: Callable[[Group, str], None]) -> None:
    record(group, backend)
