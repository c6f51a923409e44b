"""Parameters of other TokenLearner implementations, renamed and transposed into state dicts of `jair`.

Pure functions from the foreign parameters to tensors under our names, in PyTorch's layout. A key that is
missing or not expected, and a shape that does not fit the others, is a ValueError that names it. In the
tables the axes have letters: D width, H hidden width, K tokens.

Several popular PyTorch ports compute something else (a ``view`` in place of a transpose, a GroupNorm over
channels and positions together); their parameters have no equivalent here and are not converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

State = dict[str, torch.Tensor]
# A foreign key, our key, the axes of the foreign array. A size comes from the first entry that has its
# letter, so vectors, which nobody transposes by mistake, stand before matrices.
Layout = tuple[tuple[str, str, str], ...]

FLAX_TOKEN_LEARNER: Layout = (
    ("LayerNorm_0/scale", "norm.weight", "D"),
    ("LayerNorm_0/bias", "norm.bias", "D"),
    ("token_masking/Dense_0/bias", "fc1.bias", "H"),
    ("token_masking/Dense_1/bias", "fc2.bias", "K"),
    ("token_masking/Dense_0/kernel", "fc1.weight", "D H"),
    ("token_masking/Dense_1/kernel", "fc2.weight", "H K"),
)
FLAX_TOKEN_LEARNER_V1: Layout = (
    ("LayerNorm_0/scale", "norm.weight", "D"),
    ("LayerNorm_0/bias", "norm.bias", "D"),
    ("Conv_0/kernel", "convs.0.weight", "3 3 D K"),
    ("Conv_1/kernel", "convs.1.weight", "3 3 K K"),
    ("Conv_2/kernel", "convs.2.weight", "3 3 K K"),
    ("Conv_3/kernel", "convs.3.weight", "3 3 K K"),
)
FLAX_TOKEN_FUSER: Layout = (
    *FLAX_TOKEN_LEARNER,
    ("fuser_mix_norm1/scale", "norm_tokens.weight", "D"),
    ("fuser_mix_norm1/bias", "norm_tokens.bias", "D"),
    ("Dense_0/bias", "mix.bias", "K"),
    ("Dense_0/kernel", "mix.weight", "K K"),
    ("fuser_mix_norm2/scale", "norm_mixed.weight", "D"),
    ("fuser_mix_norm2/bias", "norm_mixed.bias", "D"),
)
RT1: Layout = (
    ("layerNorm.weight", "norm.weight", "D"),
    ("layerNorm.bias", "norm.bias", "D"),
    ("conv1.bias", "fc1.bias", "H"),
    ("conv2.bias", "fc2.bias", "K"),
    ("conv1.weight", "fc1.weight", "H D 1 1"),
    ("conv2.weight", "fc2.weight", "K H 1 1"),
)
OPEN_X: Layout = (
    ("layer_norm.weight", "norm.weight", "D"),
    ("layer_norm.bias", "norm.bias", "D"),
    ("mlp.linear_1.bias", "fc1.bias", "H"),
    ("mlp.linear_2.bias", "fc2.bias", "K"),
    ("mlp.linear_1.weight", "fc1.weight", "H D"),
    ("mlp.linear_2.weight", "fc2.weight", "K H"),
)


def flax_token_learner(params: Mapping[str, Any]) -> State:
    """scenic's TokenLearnerModuleV11: ``LayerNorm_0``, ``token_masking/Dense_{0,1}``, [in, out]."""
    return _read(_flatten(params), FLAX_TOKEN_LEARNER, "params")


def flax_token_learner_v1(params: Mapping[str, Any]) -> State:
    """scenic's TokenLearnerModule: ``LayerNorm_0``, ``Conv_{0..3}``, [3, 3, in, out]."""
    return _read(_flatten(params), FLAX_TOKEN_LEARNER_V1, "params")


def flax_token_fuser(params: Mapping[str, Any]) -> State:
    """scenic's TokenFuser: ``fuser_mix_norm{1,2}``, ``Dense_0``, ``LayerNorm_0``, ``token_masking``."""
    return _read(_flatten(params), FLAX_TOKEN_FUSER, "params")


def rt1(state_dict: Mapping[str, Any], prefix: str = "") -> State:
    """PyTorch ports of RT-1: ``layerNorm``, ``conv1`` [H, D, 1, 1], ``conv2`` [K, H, 1, 1]."""
    return _read(_below(state_dict, prefix), RT1, "state_dict")


def open_x(state_dict: Mapping[str, Any], prefix: str = "") -> State:
    """PyTorch ports of Open X-Embodiment: ``layer_norm``, ``mlp.linear_{1,2}``."""
    return _read(_below(state_dict, prefix), OPEN_X, "state_dict")


def sizes(state: State) -> dict[str, int]:
    """The sizes a module must be made with to load a converted state dict."""
    if "convs.0.weight" in state:
        num_tokens, dim = state["convs.0.weight"].shape[:2]
        return {"dim": dim, "num_tokens": num_tokens}
    bottleneck_dim, dim = state["fc1.weight"].shape
    return {"dim": dim, "num_tokens": state["fc2.weight"].shape[0], "bottleneck_dim": bottleneck_dim}


def _read(source: Mapping[str, Any], layout: Layout, argument: str) -> State:
    expected = [key for key, _, _ in layout]
    missing = [key for key in expected if key not in source]
    unknown = [key for key in source if key not in expected]
    if missing or unknown:
        got = [
            f"{', '.join(keys)} {what}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys
        ]
        raise ValueError(f"{argument}: expected the keys {', '.join(expected)}, got {' and '.join(got)}")
    state: State = {}
    known: dict[str, int] = {}
    for key, name, axes in layout:
        value = _tensor(key, source[key])
        _match(key, value.shape, axes.split(), known)
        state[name] = _to_torch_layout(value, key)
    dtypes = {value.dtype for value in state.values()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype)[6:] for dtype in dtypes))
        raise ValueError(f"{argument}: expected one dtype, got {names}")
    return state


def _tensor(key: str, value: object) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            raise ValueError(f"{key}: expected a floating-point tensor, got {str(value.dtype)[6:]}")
        return value.detach()
    array = np.array(value)  # a copy: torch warns of the read-only memory that JAX hands out
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{key}: expected a float16, float32 or float64 array, got {array.dtype}")
    return torch.from_numpy(array)


def _match(key: str, shape: torch.Size, axes: list[str], known: dict[str, int]) -> None:
    given = "".join(f", {axis} = {known[axis]}" for axis in dict.fromkeys(axes) if axis in known)
    if len(shape) == len(axes):
        pairs = zip(axes, shape, strict=True)
        want = [int(axis) if axis.isdigit() else known.setdefault(axis, size) for axis, size in pairs]
        if want == list(shape):
            return
    raise ValueError(f"{key}: expected shape [{', '.join(axes)}]{given}, got {list(shape)}")


def _to_torch_layout(value: torch.Tensor, key: str) -> torch.Tensor:
    if key.endswith("/kernel"):  # flax keeps [..., in, out], torch [out, in, ...]
        return value.permute(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2)).contiguous()
    return value.flatten(1) if value.ndim == 4 else value  # a 1x1 convolution is a linear map of the channels


def _flatten(tree: object, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise TypeError(f"params: expected a nested dict, got {type(tree).__name__}")
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(
            _flatten(value, f"{path}{key}/") if isinstance(value, Mapping) else {f"{path}{key}": value}
        )
    return flat


def _below(state_dict: object, prefix: str) -> dict[str, Any]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a dict, got {type(state_dict).__name__}")
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
