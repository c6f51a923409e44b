"""A saved model's files: what is damaged is told in one line, with the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from jair.config import SIZES, JAIRConfig
from jair.encoders import optional_import, with_settings

Tensor = torch.Tensor
Model = TypeVar("Model")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # in which a model runs


def read_config(folder: Path) -> JAIRConfig:
    """The folder's config.json; the sizes must be there, since weights were made for them.

    Raises:
        OSError: it is missing. ValueError: it is damaged, or a field does not fit, with the file.
    """
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got what is none ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(values).__name__}")
    missing = [name for name in (*SIZES, "num_layers") if name not in values]
    if missing:
        raise ValueError(f"{file}: expected every size, got no {', '.join(missing)}")
    with _told_of(file):
        return JAIRConfig.from_dict(values)


def read_empty(folder: Path, model_class: Callable[[JAIRConfig], Model]) -> Model:
    """The model that the folder's config.json describes, on "meta": without values.

    Errors as in `read_config`, also of settings that make no encoder.
    """
    config = read_config(folder)
    with _told_of(folder / "config.json"), torch.device("meta"):
        return model_class(with_settings(config))  # else a checkpoint's weights would be read


@contextmanager
def _told_of(file: Path) -> Iterator[None]:
    try:
        yield
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
    floating = {name: state[name].dtype for name, value in expected.items() if value.is_floating_point()}
    first = next(iter(floating.values()))
    for name, value in state.items():
        if name not in floating and value.dtype != expected[name].dtype:
            raise ValueError(f"{file}: expected {name} in {expected[name].dtype}, got {value.dtype}")
        if name in floating and value.dtype not in DTYPES:
            wanted = ", ".join(map(str, DTYPES))
            raise ValueError(f"{file}: expected {name} in one of {wanted}, got {value.dtype}")
        if name in floating and value.dtype != first:
            raise ValueError(f"{file}: expected {name} in {first} like the others, got {value.dtype}")
