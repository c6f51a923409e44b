"""Rows of the whole model: a training step without its optimizer, and an answer of 16 words."""

from collections.abc import Callable

import pytest

from benchmarks.shapes import Group

pytest.importorskip("transformers", reason="the extra 'models' is not installed")

OPS = ("JAIR", "JAIR.generate")


def test_model(group: Group, backend: str, record: Callable[[Group, str], None]) -> None:
    record(group, backend)
