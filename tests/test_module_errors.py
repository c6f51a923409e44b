"""Bad input to the modules: the argument is named, with what was expected and what was got."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import jair
import jair_kernels
from jair.baselines import FUSIONS

D, K = 12, 3
LEARNER, FIRST, V1 = (
    jair.TokenLearner(D, K),
    jair.TokenLearner(D, K, channels_first=True),
    jair.TokenLearnerV1(D, K),
)
FUSER = jair.TokenFuser(D, K)
RESAMPLER = jair.LatentResampler(D, K, 2)
LAYER = jair.TransformerLayer(D, 2, 8)
FUSION = jair.GatedFusion(D, 2, 8, kv_dim=5)
X = torch.zeros(2, 6, D)
BAD = {
    "dim": (lambda: jair.TokenLearner(0, K), "dim: expected an int >= 1, got 0"),
    "num_tokens": (lambda: jair.TokenLearnerV1(D, 2.0), "num_tokens: expected an int, got float"),
    "bottleneck_dim": (lambda: jair.TokenFuser(D, K, True), "bottleneck_dim: expected an int, got bool"),
    "approximate": (
        lambda: jair.TokenLearner(D, K, approximate="erf"),
        "approximate: expected 'tanh' or 'none', got 'erf'",
    ),
    "eps": (lambda: jair.TokenLearnerV1(D, K, eps=0.0), "eps: expected a finite number > 0, got 0.0"),
    "list": (lambda: LEARNER([1.0]), "x: expected a tensor, got list"),
    "rank": (lambda: LEARNER(X[0]), "x: expected [B, N, D] or [B, H, W, D], got shape [6, 12]"),
    "channels_first rank": (lambda: FIRST(X), "x: expected [B, D, H, W], got shape [2, 6, 12]"),
    "channels last into channels_first": (
        lambda: FIRST(X.unflatten(1, (2, 3))),
        "x: expected D = 12, got shape [2, 2, 3, 12]",
    ),
    "width": (lambda: LEARNER(X[..., :7]), "x: expected D = 12, got shape [2, 6, 7]"),
    "no positions": (lambda: LEARNER(X[:, :0]), "x: expected N >= 1, got shape [2, 0, 12]"),
    "no rows": (lambda: V1(torch.zeros(2, 0, 3, D)), "x: expected H >= 1, got shape [2, 0, 3, 12]"),
    "dtype": (lambda: V1(X.double()), "x: expected dtype float32 like the parameters, got float64"),
    "device": (lambda: V1(X.to("meta")), "x: expected device cpu like the parameters, got meta"),
    "mask": (lambda: LEARNER(X, X[..., 0]), "mask: expected dtype bool (True = keep), got float32"),
    "transposed mask": (
        lambda: LEARNER(X.unflatten(1, (2, 3)), torch.ones(2, 3, 2, dtype=torch.bool)),
        "mask: expected shape [B, N] = [2, 6], got [2, 3, 2]",
    ),
    "mask of weights, transposed": (
        lambda: LEARNER.attention_weights(X.unflatten(1, (2, 3)), torch.ones(2, 3, 2, dtype=torch.bool)),
        "mask: expected shape [B, N] = [2, 6], got [2, 3, 2]",
    ),
    "mask of weights, a list": (
        lambda: LEARNER.attention_weights(X, [True]),
        "mask: expected a bool tensor or None, got list",
    ),
    "resampler method": (
        lambda: jair.LatentResampler(D, K, 2, method="bad"),
        "method: expected 'projected' or 'absorbed' or 'auto', got 'bad'",
    ),
    "resampler norm": (lambda: jair.LatentResampler(D, K, 2, norm="yes"), "norm: expected a bool, got str"),
    "resampler kv_dim": (
        lambda: jair.LatentResampler(D, K, 2, kv_dim=5, attend_latents=True),
        "kv_dim: expected dim = 12 with attend_latents, got 5",
    ),
    "resampler dtype": (
        lambda: RESAMPLER(X.double()),
        "x: expected dtype float32 like the parameters, got float64",
    ),
    "layer dtype": (lambda: LAYER(X.half()), "x: expected dtype float32 like the parameters, got float16"),
    "layer width": (lambda: LAYER(X[..., :7]), "x: expected D = 12, got shape [2, 6, 7]"),
    "fusion dtype": (
        lambda: FUSION(X.double(), X[..., :5]),
        "t: expected dtype float32 like the parameters, got float64",
    ),
    "fusion width": (lambda: FUSION(X, X), "f: expected D = 5, got shape [2, 6, 12]"),
    "not a square": (
        lambda: V1(X),
        "x: expected [B, H, W, D], or [B, N, D] with N a square, got shape [2, 6, 12]",
    ),
    "fuser grid": (
        lambda: FUSER(X[:, :K], X.unflatten(1, (2, 3))),
        "original: expected 3 dimensions [B, N, D], got shape [2, 2, 3, 12]",
    ),
    "fuser width": (lambda: FUSER(X[:, :K], X[..., :5]), "original: expected D = 12, got shape [2, 6, 5]"),
    "fuser tokens": (
        lambda: FUSER(X, X),
        "tokens: expected shape [B, K, D] = [2, 3, 12], got [2, 6, 12]",
    ),
    "fuser dtype": (
        lambda: FUSER(X[:, :K].half(), X),
        "tokens: expected dtype float32 like the main input, got float16",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match="expected") as error:
        call()
    assert str(error.value) == message


CONFIG = {"dim": D, "num_heads": 2, "mlp_dim": 8, "num_latents": 3, "iterations": 1, "num_layers": 0}
TEXT, KEEP = torch.zeros(2, 5, D), torch.ones(2, 5, dtype=torch.bool)
OF_FUSIONS = {
    "image rank": ((X[0], TEXT, KEEP), "image: expected 3 dimensions [B, N, D], got shape [6, 12]"),
    "image width": ((X[..., :5], TEXT, KEEP), "image: expected D = 12, got shape [2, 6, 5]"),
    "text width": ((X, TEXT[..., :5], KEEP), "text: expected D = 12, got shape [2, 5, 5]"),
    "image dtype": (
        (X.double(), TEXT, KEEP),
        "image: expected dtype float32 like the parameters, got float64",
    ),
    "text dtype": ((X, TEXT.half(), KEEP), "text: expected dtype float32 like the parameters, got float16"),
    "batch": ((X, TEXT[:1], KEEP[:1]), "text: expected a batch of 2 like image, got shape [1, 5, 12]"),
    "mask": ((X, TEXT, KEEP[:, :4]), "text_mask: expected shape [B, N] = [2, 5], got [2, 4]"),
}


@pytest.mark.parametrize("name", list(FUSIONS))
@pytest.mark.parametrize("case", OF_FUSIONS)
def test_bad_input_of_a_fusion_is_named(name: str, case: str) -> None:
    module = FUSIONS[name](jair.JAIRConfig(**CONFIG, fusion=name))
    given, message = OF_FUSIONS[case]
    module(X, TEXT, KEEP)
    with pytest.raises((TypeError, ValueError), match="expected") as error:
        module(*given)
    assert str(error.value) == message


@pytest.mark.parametrize("whole", [np.int64, np.int32, np.uint8])
def test_sizes_may_be_whole_numbers_of_numpy(whole: type) -> None:
    sizes = [whole(number) for number in (D, K, 2, 8, 5)]
    dim, tokens, heads, hidden, kv_dim = sizes
    text = X[:, :5]
    modules = (
        (jair.TokenLearner(dim, tokens), (X,)),
        (jair.LatentResampler(dim, tokens, heads, kv_dim, num_kv_heads=whole(1)), (X[..., :5],)),
        (jair.TransformerLayer(dim, heads, hidden), (X,)),
        (jair.GatedFusion(dim, heads, hidden, kv_dim), (X, X[..., :5])),
        (
            jair.JointAdaptiveFusion(jair.JAIRConfig(**{n: whole(v) for n, v in CONFIG.items() if v})),
            (X, text),
        ),
    )
    for module, inputs in modules:
        module(*inputs)
    layer = jair.TransformerLayer(dim, heads, hidden)
    assert type(layer.num_heads) is int


@pytest.mark.parametrize("value", [np.bool_(True), np.float32(4), np.ones(2, dtype=int), torch.tensor(4)])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    message = f"num_heads: expected an int, got {type(value).__name__}"
    q = torch.zeros(1, 2, 4, requires_grad=True)
    params = jair_kernels.TransformerLayerParams(*(None,) * 12)
    for call in (
        lambda: jair.TransformerLayer(D, value, 8),
        lambda: jair_kernels.fused_transformer_layer(q, params, num_heads=value),
    ):
        with pytest.raises(TypeError, match="expected an int") as error:
            call()
        assert str(error.value) == message
