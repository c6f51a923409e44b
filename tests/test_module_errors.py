"""Bad input to the modules: the argument is named, with what was expected and what was got."""

from __future__ import annotations

import pytest
import torch

import jair

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
