"""With which weights a model starts, what of it is trained, and what decays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from jair.model import JAIR


def start_from(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a saved model of the same shapes.

    Raises:
        ValueError: it has others, by name.
    """
    saved = JAIR.from_pretrained(folder).state_dict()
    for name, value in model.state_dict().items():
        if name not in saved or saved[name].shape != value.shape:
            got = list(saved[name].shape) if name in saved else "none"
            raise ValueError(f"init: expected {name} of shape {list(value.shape)} in {folder}, got {got}")
    model.load_state_dict({name: saved[name] for name in model.state_dict()})


def freeze(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules of these names, whose parameters need no gradient from now on.

    They belong into evaluation mode, also in training, in which batch norms keep their statistics.

    Raises:
        ValueError: no such module, or nothing is left to train.
    """
    known = dict(model.named_modules())
    del known[""]
    for name in names:
        if name not in known:
            raise ValueError(f"freeze: expected modules of the model like 'image_encoder', got {name!r}")
    frozen = [known[name].requires_grad_(False) for name in names]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze: expected to leave something to train, got {', '.join(names)}")
    return frozen


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Of an optimizer: matrices decay; biases, norms, gates and embeddings do not."""
    decay: list[Tensor] = []
    other: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decay if parameter.ndim > 1 and "embedding" not in name else other).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]
