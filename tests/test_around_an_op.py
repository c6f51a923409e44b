"""What training code does around an op: autocast on around the backward alone, results changed in place,
checkpoints, losses that overflow.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jair import GatedFusion, LatentResampler, TokenFuser, TokenLearner, TokenLearnerV1, TransformerLayer
from jair_kernels import fused_cross_attention, fused_latent_resample, fused_token_pool, use_backend

Run = Callable[[torch.Tensor], torch.Tensor]

MODULES: dict[str, Callable[[], nn.Module]] = {
    "TokenLearner": lambda: TokenLearner(32, 4),
    "TokenLearnerV1": lambda: TokenLearnerV1(32, 4),
    "LatentResampler projected": lambda: LatentResampler(32, 4, 2, norm=True, method="projected"),
    "LatentResampler absorbed": lambda: LatentResampler(32, 4, 2, norm=True, method="absorbed"),
    "GatedFusion jair": lambda: GatedFusion(32, 2, 64, form="jair"),
    "GatedFusion flamingo": lambda: GatedFusion(32, 2, 64, form="flamingo"),
    "TransformerLayer": lambda: TransformerLayer(32, 2, 64),
}


def module(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = MODULES[name]()
    with torch.no_grad():
        for parameter in made.parameters():  # gates and biases start at 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def of_one(made: nn.Module) -> Run:
    """Of a module that fuses two inputs, with the same for both."""
    return (lambda x: made(x, x)) if isinstance(made, GatedFusion) else made


def tokens() -> torch.Tensor:
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_()


def gradients(made: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    found = [x.grad, *(parameter.grad for parameter in made.parameters())]
    return [g for g in found if g is not None]


def assert_equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("low", [False, True])
def test_autocast_around_the_backward_changes_nothing(name: str, low: bool) -> None:
    inside, outside = module(name), module(name)
    x, z = tokens(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = of_one(inside)(x)
        y.float().square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = of_one(outside)(z)
    y.float().square().sum().backward()
    assert_equal(gradients(inside, x), gradients(outside, z))


@pytest.mark.parametrize("name", [*MODULES, "TokenFuser", "fused_cross_attention", "fused_token_pool"])
def test_the_result_may_be_changed_in_place(name: str) -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        if name == "TokenFuser":
            return TokenFuser(32, 4)(torch.randn(2, 4, 32), x)
        if name == "fused_cross_attention":
            heads = x.view(2, 9, 2, 16).transpose(1, 2)
            return fused_cross_attention(heads, heads, heads)
        return fused_token_pool(x, x[..., :4]) if name == "fused_token_pool" else of_one(module(name))(x)

    x, z = tokens(), tokens()
    changed = run(x)
    changed.mul_(3).add_(1)
    changed.square().sum().backward()
    (run(z) * 3 + 1).square().sum().backward()
    assert x.grad is not None
    assert z.grad is not None
    assert torch.equal(x.grad, z.grad)


@pytest.mark.parametrize("name", MODULES)
def test_a_checkpoint_whose_gradient_is_recorded(name: str) -> None:
    run, x = of_one(module(name)), tokens()
    loss = checkpoint(run, x, use_reentrant=False).square().sum()
    (found,) = torch.autograd.grad(loss, x, create_graph=True)
    (wanted,) = torch.autograd.grad(run(x).square().sum(), x)
    assert torch.equal(found, wanted)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        torch.autograd.grad(found.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", ["fused_token_pool", "fused_latent_resample"])
def test_a_gradient_that_overflows_leaves_masked_tokens_alone(op: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    mask = torch.arange(9) < torch.tensor([[9], [5]])
    x, scores, latents = draw(2, 9, 32), draw(2, 9, 4), draw(4, 32)
    weights = [draw(32, 32) for _ in range(4)]
    with use_backend("cpu"):
        if op == "fused_token_pool":
            y = fused_token_pool(x, scores, mask=mask)
        else:
            y = fused_latent_resample(x, latents, *weights, num_heads=2, mask=mask, method="absorbed")
    dy = torch.ones_like(y)
    dy[:, 0] = float("inf")
    y.backward(dy)
    assert x.grad is not None
    assert not x.grad[mask].isfinite().all()
    assert x.grad[~mask].eq(0).all()
    assert scores.grad is None or scores.grad[~mask].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_sigmoid_gets_to_zero(dtype: torch.dtype) -> None:
    x = torch.ones(1, 5, 8, dtype=dtype)
    scores = torch.full((1, 5, 3), -1e4, dtype=dtype).requires_grad_()
    y = fused_token_pool(x, scores, weighting="sigmoid", backend="cpu")
    y.sum().backward()
    assert scores.grad is not None
    assert y.eq(0).all()
    assert scores.grad.eq(0).all()
