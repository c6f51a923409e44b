"""Weights and optimizer of a model as named tensors and back: whole on the first process, or in shards."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel

Tensor = torch.Tensor
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SHARDS = StateDictOptions(cpu_offload=True)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name, whole on the first process."""
    return cast("dict[str, Tensor]", get_model_state_dict(model, options=_WHOLE))


def tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None, *, sharded: bool
) -> dict[str, Tensor]:
    """weights.NAME, optimizer.NAME.KEY, average.NAME and the state of the random numbers. sharded: of what a
    process holds a shard of, that shard.
    """
    options = _SHARDS if sharded else _WHOLE
    weights = cast("dict[str, Tensor]", get_model_state_dict(model, options=options))
    moments: Any = get_optimizer_state_dict(model, optimizer, options=options)
    found = {f"weights.{name}": value for name, value in weights.items()}
    for name, values in moments.get("state", {}).items():
        found |= {f"optimizer.{name}.{key}": torch.as_tensor(value) for key, value in values.items()}
    found["random"] = torch.get_rng_state()
    if average is not None:
        found["averaged"] = average.n_averaged
        found |= {f"average.{name}": value for name, value in average.module.state_dict().items()}
    return found


def load_tensors(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    *,
    sharded: bool,
) -> None:
    """Put back what `tensors_of` gave."""
    options = _SHARDS if sharded else _WHOLE
    set_model_state_dict(model, dict(part(tensors, "weights.")), options=options)
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in part(tensors, "optimizer.").items():
        parameter, _, key = name.rpartition(".")
        moments.setdefault(parameter, {})[key] = value
    if moments:
        names = {parameter: name.removeprefix("module.") for name, parameter in model.named_parameters()}
        groups = [
            {**group, "params": [names[parameter] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ]
        state: Any = {"state": moments, "param_groups": groups}
        set_optimizer_state_dict(model, optimizer, state, options=options)
    if average is not None:
        average.module.load_state_dict(part(tensors, "average."))
        average.n_averaged.copy_(tensors["averaged"])
    torch.set_rng_state(tensors["random"])


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
