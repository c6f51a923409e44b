"""Parameters of flax and of the PyTorch ports: by hand, against the ports themselves, and refused."""

from __future__ import annotations

import math

import numpy as np
import plain_modules as plain
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jair

D, H, K = 12, 5, 3


class RT1TokenLearner(nn.Module):
    """As the RT-1 ports have it: channels first, 1x1 convolutions, tanh GELU, PyTorch's LayerNorm eps."""

    def __init__(self, channels: int, num_tokens: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.layerNorm = nn.LayerNorm(channels)
        self.conv1 = nn.Conv2d(channels, bottleneck_dim, 1)
        self.conv2 = nn.Conv2d(bottleneck_dim, num_tokens, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.layerNorm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores = self.conv2(F.gelu(self.conv1(normed), approximate="tanh"))
        return scores.flatten(2).softmax(-1) @ x.flatten(2).transpose(1, 2)


class OpenXMlp(nn.Module):
    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden)
        self.linear_2 = nn.Linear(hidden, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


class OpenXTokenLearner(nn.Module):
    """As the Open X-Embodiment ports have it: channels last, erf GELU, PyTorch's LayerNorm eps."""

    def __init__(self, dim: int, num_tokens: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(dim)
        self.mlp = OpenXMlp(dim, bottleneck_dim, num_tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return self.mlp(self.layer_norm(x)).transpose(1, 2).softmax(-1) @ x


PORTS = {
    "rt1": (RT1TokenLearner, jair.TokenLearner.from_rt1, (2, D, 3, 4)),
    "open_x": (OpenXTokenLearner, jair.TokenLearner.from_open_x, (2, 3, 4, D)),
}


@pytest.mark.parametrize("port", PORTS)
def test_port_computes_the_same(port: str) -> None:
    original_class, convert, shape = PORTS[port]
    torch.manual_seed(0)
    original = original_class(D, K, H).double()
    for parameter in original.parameters():
        nn.init.normal_(parameter)
    # small deviations make the eps visible: 1e-6 in its place is off by more than the tolerance
    x = 0.01 * torch.randn(*shape, dtype=torch.float64)
    module = convert(original.state_dict())
    torch.testing.assert_close(module(x), original(x), rtol=1e-9, atol=1e-12)
    whole = {f"tokenizer.learner.{key}": value for key, value in original.state_dict().items()}
    whole["head.weight"] = torch.zeros(2)
    inside = convert(whole, prefix="tokenizer.learner.")
    assert torch.equal(inside(x), module(x))


@pytest.mark.parametrize("port", PORTS)
def test_port_keeps_the_dtype_and_copies(port: str) -> None:
    original_class, convert, _ = PORTS[port]
    original = original_class(D, K, H).bfloat16()
    module = convert(original.state_dict())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    before = module.norm.weight.clone()
    with torch.no_grad():
        next(original.parameters()).fill_(7)
    assert torch.equal(module.norm.weight, before)


def test_flax_kernels_by_hand() -> None:
    """Two tokens, worked on paper: (3, 1) and (1, 3) normalise to (1, -1) and (-1, 1).

    The kernel [in, out] sends the first channel to the second hidden unit, times 20, where GELU is x or 0;
    the second kernel sends that unit to the first token, times ln 3 / 20. Softmax: 3/4, 1/4 and 1/2, 1/2.
    """
    params = {
        "LayerNorm_0": {"scale": np.ones(2), "bias": np.zeros(2)},
        "token_masking": {
            "Dense_0": {"kernel": np.array([[0.0, 20.0], [0.0, 0.0]]), "bias": np.zeros(2)},
            "Dense_1": {"kernel": np.array([[0.0, 0.0], [math.log(3) / 20, 0.0]]), "bias": np.zeros(2)},
        },
    }
    y = jair.TokenLearner.from_flax(params)(torch.tensor([[[3.0, 1.0], [1.0, 3.0]]], dtype=torch.float64))
    by_hand = torch.tensor([[[2.5, 1.5], [2.0, 2.0]]], dtype=torch.float64)
    torch.testing.assert_close(
        y, by_hand, rtol=0, atol=1e-6
    )  # the LayerNorm's eps of 1e-6 was left out by hand


def test_flax_convolutions_by_hand() -> None:
    """One nonzero in each kernel: [row, column, in, out] of flax is [out, in, row, column] here."""
    params = plain.arrays(plain.token_learner_v1_params(3, 2))
    for i in range(4):
        params[f"Conv_{i}"]["kernel"][:] = 0
    params["Conv_0"]["kernel"][0, 2, 1, 1] = 5
    params["Conv_3"]["kernel"][2, 1, 0, 1] = 7
    state = jair.TokenLearnerV1.from_flax(params).state_dict()
    assert state["convs.0.weight"].nonzero().tolist() == [[1, 1, 0, 2]]
    assert state["convs.3.weight"].nonzero().tolist() == [[1, 0, 2, 1]]
    assert state["convs.0.weight"].sum() == 5
    assert state["convs.3.weight"].sum() == 7


def test_flax_mix_by_hand() -> None:
    """The kernel [in, out] moves the first of two tokens to the second place."""
    params = plain.arrays(plain.token_fuser_params(2, 3, 2))
    params["Dense_0"]["kernel"][:] = [[0, 1], [0, 0]]
    assert jair.TokenFuser.from_flax(params).mix.weight.tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_flax_dtype_is_kept(dtype: type) -> None:
    params = plain.arrays(plain.token_learner_params(D, H, K))
    params = {key: cast(value, dtype) for key, value in params.items()}
    state = jair.TokenLearner.from_flax(params).state_dict()
    assert {str(value.dtype) for value in state.values()} == {f"torch.{np.dtype(dtype)}"}
    assert np.array_equal(state["fc1.weight"].numpy().T, params["token_masking"]["Dense_0"]["kernel"])


def cast(tree: dict, dtype: type) -> dict:
    return {k: cast(v, dtype) if isinstance(v, dict) else v.astype(dtype) for k, v in tree.items()}


def learner_params() -> dict:
    return plain.arrays(plain.token_learner_params(D, H, K))


def missing_key() -> object:
    params = learner_params()
    del params["token_masking"]["Dense_1"]["bias"]
    return params


def unknown_key() -> object:
    return {**learner_params(), "LayerNorm_1": {"scale": np.ones(D)}}


def wrong_shape() -> object:
    params = learner_params()
    params["token_masking"]["Dense_0"]["kernel"] = params["token_masking"]["Dense_0"]["kernel"].T
    return params


def wrong_rank() -> object:
    params = learner_params()
    params["LayerNorm_0"]["scale"] = np.ones((1, D))
    return params


def integers() -> object:
    params = learner_params()
    params["LayerNorm_0"]["bias"] = np.zeros(D, dtype=np.int64)
    return params


def mixed_dtypes() -> object:
    params = learner_params()
    params["LayerNorm_0"]["bias"] = np.zeros(D, dtype=np.float32)
    return params


LEARNER_KEYS = (
    "LayerNorm_0/scale, LayerNorm_0/bias, token_masking/Dense_0/bias, token_masking/Dense_1/bias, "
    "token_masking/Dense_0/kernel, token_masking/Dense_1/kernel"
)
REFUSED = {
    missing_key: f"params: expected the keys {LEARNER_KEYS}, got token_masking/Dense_1/bias missing",
    unknown_key: f"params: expected the keys {LEARNER_KEYS}, got LayerNorm_1/scale unknown",
    wrong_shape: "token_masking/Dense_0/kernel: expected shape [D, H], D = 12, H = 5, got [5, 12]",
    wrong_rank: "LayerNorm_0/scale: expected shape [D], got [1, 12]",
    integers: "LayerNorm_0/bias: expected a float16, float32 or float64 array, got int64",
    mixed_dtypes: "params: expected one dtype, got float32, float64",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_flax_refuses(make: object) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        jair.TokenLearner.from_flax(make())
    assert str(error.value) == REFUSED[make]


def test_other_layers_refuse_by_name_too() -> None:
    with pytest.raises(
        ValueError, match=r"got Conv_0/kernel, Conv_1/kernel, .* missing and token_masking/Dense_0/k"
    ):
        jair.TokenLearnerV1.from_flax(learner_params())
    with pytest.raises(ValueError, match=r"got fuser_mix_norm1/scale, .* missing$"):
        jair.TokenFuser.from_flax(learner_params())
    params = plain.arrays(plain.token_learner_v1_params(D, K))
    params["Conv_2"]["kernel"] = np.zeros((1, 1, K, K))
    with pytest.raises(
        ValueError, match=r"Conv_2/kernel: expected shape \[3, 3, K, K\], K = 3, got \[1, 1, 3, 3\]"
    ):
        jair.TokenLearnerV1.from_flax(params)
    with pytest.raises(TypeError, match="params: expected a nested dict, got list"):
        jair.TokenLearner.from_flax([])


def test_ports_refuse_by_name() -> None:
    state = RT1TokenLearner(D, K, H).state_dict()
    with pytest.raises(
        ValueError, match=r"got layer_norm.weight, .* missing and layerNorm.weight, .* unknown"
    ):
        jair.TokenLearner.from_open_x(state)
    with pytest.raises(
        ValueError, match=r"conv2.weight: expected shape \[K, H, 1, 1\], K = 3, H = 5, got \[3, 5, 3, 3\]"
    ):
        jair.TokenLearner.from_rt1({**state, "conv2.weight": torch.zeros(K, H, 3, 3)})
    with pytest.raises(ValueError, match=r"conv1.bias: expected a floating-point tensor, got int64"):
        jair.TokenLearner.from_rt1({**state, "conv1.bias": torch.zeros(H, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"missing$"):
        jair.TokenLearner.from_rt1(state, prefix="elsewhere.")
    with pytest.raises(TypeError, match="state_dict: expected a dict, got list"):
        jair.TokenLearner.from_rt1(list(state))
