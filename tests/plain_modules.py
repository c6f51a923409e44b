"""The three modules as paper and authors' code define them: plain tensor operations on flax parameters."""

from __future__ import annotations

import math
from typing import Any

import torch

Params = dict[str, Any]


def gelu(x: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x: torch.Tensor, params: Params, eps: float = 1e-6) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * params["scale"] + params["bias"]


def dense(x: torch.Tensor, params: Params) -> torch.Tensor:
    return x @ params["kernel"] + params["bias"]


def score_mlp(x: torch.Tensor, params: Params, approximate: str = "tanh") -> torch.Tensor:
    hidden = gelu(
        dense(layer_norm(x, params["LayerNorm_0"]), params["token_masking"]["Dense_0"]), approximate
    )
    return dense(hidden, params["token_masking"]["Dense_1"])


def conv_same(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """3x3 convolution of [B,H,W,in] with a kernel [3,3,in,out], zeros around the grid."""
    batch, height, width, _ = x.shape
    padded = x.new_zeros(batch, height + 2, width + 2, x.shape[3])
    padded[:, 1:-1, 1:-1] = x
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in shifts)


def token_learner(params: Params, x: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    exp = score_mlp(x, params, approximate).exp()
    return torch.einsum("bnk,bnd->bkd", exp / exp.sum(1, keepdim=True), x)


def token_learner_v1(params: Params, x: torch.Tensor, sum_pooling: bool = True) -> torch.Tensor:
    s = layer_norm(x, params["LayerNorm_0"])
    for i in range(3):
        s = gelu(conv_same(s, params[f"Conv_{i}"]["kernel"]))
    weights = 1 / (1 + torch.exp(-conv_same(s, params["Conv_3"]["kernel"])))
    y = torch.einsum("bhwk,bhwd->bkd", weights, x)
    return y if sum_pooling else y / (x.shape[1] * x.shape[2])


def token_fuser(params: Params, tokens: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    t = layer_norm(tokens, params["fuser_mix_norm1"])
    mixed = torch.einsum("bkd,kj->bjd", t, params["Dense_0"]["kernel"]) + params["Dense_0"]["bias"][:, None]
    weights = 1 / (1 + torch.exp(-score_mlp(original, params)))
    return torch.einsum("bnk,bkd->bnd", weights, layer_norm(mixed, params["fuser_mix_norm2"]))


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def _norm(d: int) -> Params:
    return {"scale": _random(d), "bias": _random(d)}


def _dense(inputs: int, outputs: int) -> Params:
    return {"kernel": _random(inputs, outputs), "bias": _random(outputs)}


def token_learner_params(d: int, h: int, k: int) -> Params:
    return {"LayerNorm_0": _norm(d), "token_masking": {"Dense_0": _dense(d, h), "Dense_1": _dense(h, k)}}


def token_learner_v1_params(d: int, k: int) -> Params:
    convs = {f"Conv_{i}": {"kernel": _random(3, 3, k if i else d, k)} for i in range(4)}
    return {"LayerNorm_0": _norm(d), **convs}


def token_fuser_params(d: int, h: int, k: int) -> Params:
    mix = {"fuser_mix_norm1": _norm(d), "Dense_0": _dense(k, k), "fuser_mix_norm2": _norm(d)}
    return {**token_learner_params(d, h, k), **mix}


def arrays(params: Params) -> Params:
    """The same dict with numpy arrays, as a flax checkpoint has them."""
    return {
        key: arrays(value) if isinstance(value, dict) else value.detach().numpy()
        for key, value in params.items()
    }
