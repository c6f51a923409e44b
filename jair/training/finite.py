"""What keeps numbers that are not finite out of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningStatistics:
    """A copy of the buffers of modules that keep running statistics, as batch norms.

    A forward updates them before anyone knows whether its loss is finite: of a step that is left out they
    have to be put back, or one bad batch stays in the model for good.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """As they are now."""
        self._kept = [buffer.clone() for buffer in self._buffers()]

    @torch.no_grad()
    def put_back(self) -> None:
        """As they were when they were kept."""
        for buffer, kept in zip(self._buffers(), self._kept, strict=True):
            buffer.copy_(kept)

    def _buffers(self) -> list[Tensor]:
        return [buffer for module in self._modules for buffer in module.buffers(recurse=False)]


def broken(model: nn.Module) -> list[str]:
    """Names of parameters and buffers with a number that is not finite, in this process's share of them."""
    found = []
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        share = value.to_local() if hasattr(value, "to_local") else value
        if not bool(torch.isfinite(share).all()):
            found.append(name)
    return found
