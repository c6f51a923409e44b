"""What TokenLearner and TokenFuser share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from jair import convert

if TYPE_CHECKING:
    from typing_extensions import Self


class Configured(nn.Module):
    """A module that shows the arguments it was made with, and can be made from a state dict."""

    arguments: ClassVar[tuple[str, ...]]

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.arguments)

    @classmethod
    def _from_state(cls, state: convert.State, **options: Any) -> Self:
        module = cls(**convert.sizes(state), **options, dtype=state["norm.weight"].dtype)
        module.load_state_dict(state)
        return module


def mlp_parameters(module: Any) -> tuple[torch.Tensor, ...]:
    return module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias


def reset_mlp(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
