"""Conditions that tests put kernels in: an instruction set, memory that was never written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic as _settings

from jair_kernels import _library

ISAS = _library.ISAS


def available_isas() -> tuple[str, ...]:
    """Instruction sets of the CPU kernels that this processor has, from the plainest to the widest."""
    return ISAS[: torch.ops.jair_kernels.cpu_isa_best() + 1]


@contextmanager
def cpu_isa(name: str) -> Iterator[None]:
    """Within the block the CPU kernels use this instruction set: one of `ISAS`.

    Raises:
        ValueError: the name is unknown or the processor lacks it.
    """
    if name not in available_isas():
        raise ValueError(
            f"name: expected {' or '.join(map(repr, available_isas()))} on this processor, got {name!r}"
        )
    previous = torch.ops.jair_kernels.cpu_isa()
    torch.ops.jair_kernels.set_cpu_isa(ISAS.index(name))
    try:
        yield
    finally:
        torch.ops.jair_kernels.set_cpu_isa(previous)


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Within the block torch.empty and its kin, also those called by kernels, are filled with NaN."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    _settings.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        _settings.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
