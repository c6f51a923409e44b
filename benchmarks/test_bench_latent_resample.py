"""Rows of fused_latent_resample and its peers."""

from collections.abc import Callable

from benchmarks.shapes import Group

OP = "fused_latent_resample"


def test_latent_resample(group: Group, backend: str, record: Callable[[Group, str], None]) -> None:
    record(group, backend)
