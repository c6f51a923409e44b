"""A saved model's files: what is damaged is told in one line, with the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from jair.config import SIZES, JAIRConfig
from jair.encoders import optional_import

Tensor = torch.Tensor


def read_config(folder: Path) -> JAIRConfig:
    """The folder's config.json; the sizes must be there, since weights were made for them.

    Raises:
        OSError: it is missing. ValueError: it is damaged, or a field does not fit, with the file.
    """
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got what is none ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(values).__name__}")
    missing = [name for name in (*SIZES, "num_layers") if name not in values]
    if missing:
        raise ValueError(f"{file}: expected every size, got no {', '.join(missing)}")
    try:
        return JAIRConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def read_weights(folder: Path, device: str, expected: dict[str, Any]) -> dict[str, Tensor]:
    """The folder's model.safetensors, with tensors of the names and shapes of `expected`.

    Raises:
        OSError: it is missing. ValueError: it is damaged, or other tensors are in it, with the file.
    """
    file = folder / "model.safetensors"
    load = optional_import("safetensors.torch").load_file
    try:
        state: dict[str, Tensor] = load(file, device=device)
    except optional_import("safetensors").SafetensorError as error:
        raise ValueError(f"{file}: expected a whole safetensors file, got a damaged one ({error})") from error
    _check_state(file, state, expected)
    return state


def _check_state(file: Path, state: dict[str, Tensor], expected: dict[str, Any]) -> None:
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        got = [
            f"{', '.join(names)} {what}"
            for what, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise ValueError(f"{file}: expected the weights of config.json, got {' and '.join(got)}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise ValueError(
                f"{file}: expected {name} of shape {list(expected[name].shape)}, got {list(value.shape)}"
            )
        if value.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{file}: expected {name} like {expected[name].dtype}, got {value.dtype}")
