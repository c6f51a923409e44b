"""What tokens look at: weights that sum to 1 and with which the modules' outputs come out again."""

from __future__ import annotations

import re

import pytest
import torch

from jair import LatentResampler, SpatialResampler, TokenLearner

B, N, D = 2, 9, 12


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    """With parameters of size 1, so that the weights are far from uniform."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6
    return module


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(B, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def mask() -> torch.Tensor:
    kept = torch.ones(B, N, dtype=torch.bool)
    kept[0, 3:] = False
    return kept


def assert_weights(weights: torch.Tensor, shape: tuple[int, ...]) -> None:
    assert weights.shape == shape
    torch.testing.assert_close(weights.sum(-1), torch.ones(shape[:-1], dtype=torch.float64))
    assert weights.std() > 0.05  # not all alike


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"norm": True, "attend_latents": True}, {"num_kv_heads": 2}], ids=str
)
def test_latent_resampler(
    x: torch.Tensor, mask: torch.Tensor, options: dict[str, object], masked: bool
) -> None:
    resampler = drawn(LatentResampler(D, 5, 4, dtype=torch.float64, **options))  # type: ignore[arg-type]
    kept = mask if masked else None
    weights = resampler.attention_weights(x, kept)  # type: ignore[operator]
    appended = 5 if resampler.attend_latents else 0
    assert_weights(weights, (B, 4, 5, N + appended))
    keys = x if resampler.norm_x is None else resampler.norm_x(x)
    if appended:
        latents = resampler.norm_latents(resampler.latents)
        keys = torch.cat([keys, latents.expand(B, -1, -1)], dim=1)
    v = resampler.v(keys).unflatten(-1, (-1, D // 4)).transpose(1, 2)
    v = v.repeat_interleave(4 // v.shape[1], dim=1)
    y = resampler.out((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(y, resampler(x, kept), rtol=1e-9, atol=1e-10)
    if masked:
        assert (weights[0, :, :, 3:N] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_token_learner(x: torch.Tensor, mask: torch.Tensor, masked: bool) -> None:
    pool = drawn(TokenLearner(D, 5, bottleneck_dim=8, dtype=torch.float64))
    kept = mask if masked else None
    weights = pool.attention_weights(x, kept)  # type: ignore[operator]
    assert_weights(weights, (B, 5, N))
    torch.testing.assert_close(weights @ x, pool(x, kept), rtol=1e-9, atol=1e-10)
    grid = x.view(B, 3, 3, D)
    assert torch.equal(pool.attention_weights(grid, None if kept is None else kept.view(B, 3, 3)), weights)  # type: ignore[operator]


def test_spatial_resampler(x: torch.Tensor) -> None:
    pool = drawn(SpatialResampler(D, 5).double())
    weights = pool.attention_weights(x)  # type: ignore[operator]
    assert_weights(weights, (B, 5, N))
    torch.testing.assert_close(weights @ x, pool(x), rtol=1e-9, atol=1e-10)


def test_masked_tokens_have_no_effect(x: torch.Tensor, mask: torch.Tensor) -> None:
    mask[1] = False
    for module in (LatentResampler(D, 5, 4, dtype=torch.float64), TokenLearner(D, 5, dtype=torch.float64)):
        clean = module.attention_weights(x, mask)
        assert (clean[1] == 0).all()
        broken = x.masked_fill(~mask.unsqueeze(-1), float("nan"))
        assert torch.equal(module.attention_weights(broken, mask), clean)


def test_bad_input(x: torch.Tensor) -> None:
    latent = LatentResampler(D, 5, 4, dtype=torch.float64)
    for call, error, message in (
        (lambda: latent.attention_weights(x[0]), ValueError, "x: expected 3 dimensions [B, N, D], got shape"),
        (lambda: latent.attention_weights(x.float()), TypeError, "x: expected dtype float64 like the param"),
        (lambda: latent.attention_weights(x, x[:, :, 0]), TypeError, "mask: expected dtype bool (True = ke"),
        (lambda: TokenLearner(D, 5).attention_weights(x), TypeError, "x: expected dtype float32 like the p"),
        (
            lambda: SpatialResampler(D, 5).double().attention_weights(x[:, :8]),
            ValueError,
            "x: expected [B, H, W, D], or [B, N, D] with N a square, got shape [2, 8, 12]",
        ),
    ):
        with pytest.raises(error, match="^" + re.escape(message)):
            call()
