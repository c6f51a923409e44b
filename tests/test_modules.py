"""The modules against plain definitions in float64, and what PyTorch asks of a module."""

from __future__ import annotations

import copy
import pickle

import plain_modules as plain
import pytest
import torch

import jair
import jair_kernels

D, H, K = 12, 5, 3


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def module_and_plain(name: str) -> tuple[torch.nn.Module, plain.Params, object]:
    torch.manual_seed(0)
    if name == "TokenLearner":
        params = plain.token_learner_params(D, H, K)
        return jair.TokenLearner.from_flax(plain.arrays(params)), params, plain.token_learner
    if name == "TokenLearnerV1":
        params = plain.token_learner_v1_params(D, K)
        return jair.TokenLearnerV1.from_flax(plain.arrays(params)), params, plain.token_learner_v1
    params = plain.token_fuser_params(D, H, K)
    return jair.TokenFuser.from_flax(plain.arrays(params)), params, plain.token_fuser


FORWARD = [
    ("TokenLearner", [(2, 7, D)]),
    ("TokenLearner", [(2, 1, D)]),
    ("TokenLearner", [(2, 3, 4, D)]),
    ("TokenLearnerV1", [(2, 3, 5, D)]),
    ("TokenLearnerV1", [(1, 1, 1, D)]),
    ("TokenFuser", [(2, K, D), (2, 7, D)]),
    ("TokenFuser", [(1, K, D), (1, 1, D)]),
]


def _flat(params: plain.Params, path: str = "") -> dict[str, torch.Tensor]:
    flat = {}
    for key, value in params.items():
        flat.update(_flat(value, f"{path}{key}/") if isinstance(value, dict) else {path + key: value})
    return flat


OURS = {
    "LayerNorm_0": "norm",
    "token_masking/Dense_0": "fc1",
    "token_masking/Dense_1": "fc2",
    "fuser_mix_norm1": "norm_tokens",
    "fuser_mix_norm2": "norm_mixed",
    "Dense_0": "mix",
    **{f"Conv_{i}": f"convs.{i}" for i in range(4)},
}


@pytest.mark.parametrize(("name", "shapes"), FORWARD, ids=[f"{n}-{s}" for n, s in FORWARD])
def test_values_and_all_gradients(name: str, shapes: list[tuple[int, ...]]) -> None:
    module, params, definition = module_and_plain(name)
    inputs = [randn(*shape) for shape in shapes]
    expected = definition(params, *inputs)
    grad = torch.randn_like(expected)
    leaves = _flat(params)
    want = torch.autograd.grad(expected, [*inputs, *leaves.values()], grad)

    actual = module(*inputs)
    assert_close(actual, expected)
    ours = dict(module.named_parameters())
    got = torch.autograd.grad(actual, [*inputs, *ours.values()], grad)
    by_name = dict(zip(ours, got[len(inputs) :], strict=True))
    for have, wanted in zip(got, want[: len(inputs)], strict=False):
        assert_close(have, wanted)
    for path, wanted in zip(leaves, want[len(inputs) :], strict=True):
        owner, kind = path.rsplit("/", 1)
        if kind == "kernel":
            wanted = wanted.T if wanted.ndim == 2 else wanted.permute(3, 2, 0, 1)
        assert_close(by_name.pop(f"{OURS[owner]}.{'bias' if kind == 'bias' else 'weight'}"), wanted)
    assert not by_name


def test_v1_mean_pooling_and_square_tokens() -> None:
    _, params, _ = module_and_plain("TokenLearnerV1")
    x = randn(2, 4, 4, D)
    for sum_pooling in (True, False):
        module = jair.TokenLearnerV1.from_flax(plain.arrays(params), sum_pooling=sum_pooling)
        expected = plain.token_learner_v1(params, x, sum_pooling)
        assert_close(module(x), expected)
        assert_close(module(x.flatten(1, 2)), expected)


def test_gelu_by_error_function() -> None:
    module, params, _ = module_and_plain("TokenLearner")
    erf = jair.TokenLearner(D, K, H, approximate="none", dtype=torch.float64)
    erf.load_state_dict(module.state_dict())
    x = randn(2, 7, D)
    assert_close(erf(x), plain.token_learner(params, x, "none"))


def test_channels_first_is_the_transposed_grid() -> None:
    module, params, _ = module_and_plain("TokenLearner")
    first = jair.TokenLearner(D, K, H, channels_first=True, dtype=torch.float64)
    first.load_state_dict(module.state_dict())
    x = randn(2, 3, 4, D)
    mask = torch.rand(2, 3, 4) < 0.6
    assert_close(first(x.permute(0, 3, 1, 2)), plain.token_learner(params, x))
    assert_close(first(x.permute(0, 3, 1, 2).contiguous(), mask), module(x, mask))


def test_mask_equals_leaving_tokens_out() -> None:
    module, params, _ = module_and_plain("TokenLearner")
    x = torch.randn(2, 2, 3, D, dtype=torch.float64)
    mask = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]], dtype=torch.bool)
    x[~mask] = float("nan")
    x.requires_grad_()
    y = module(x, mask)
    assert_close(y[:1], plain.token_learner(params, x.detach()[0][mask[0]].unsqueeze(0)))
    assert_close(module(x.flatten(1, 2), mask.flatten(1)), y)
    assert_close(module(x, mask.flatten(1)), y)
    assert torch.equal(y[1], torch.zeros(K, D, dtype=torch.float64))
    y.square().sum().backward()
    assert torch.equal(x.grad[~mask], torch.zeros_like(x.grad[~mask]))
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_empty_batch() -> None:
    assert jair.TokenLearner(D, K)(torch.zeros(0, 2, 3, D)).shape == (0, K, D)
    assert jair.TokenLearnerV1(D, K)(torch.zeros(0, 2, 3, D)).shape == (0, K, D)
    assert jair.TokenFuser(D, K)(torch.zeros(0, K, D), torch.zeros(0, 7, D)).shape == (0, 7, D)


NAMES = {
    "TokenLearner": "norm.weight norm.bias fc1.weight fc1.bias fc2.weight fc2.bias",
    "TokenLearnerV1": "norm.weight norm.bias convs.0.weight convs.1.weight convs.2.weight convs.3.weight",
    "TokenFuser": "norm_tokens.weight norm_tokens.bias mix.weight mix.bias norm_mixed.weight norm_mixed.bias "
    "norm.weight norm.bias fc1.weight fc1.bias fc2.weight fc2.bias",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_copies_and_strict_loading(name: str) -> None:
    module, _, _ = module_and_plain(name)
    assert list(module.state_dict()) == NAMES[name].split()
    inputs = [randn(*shape) for shape in next(shapes for n, shapes in FORWARD if n == name)]
    expected = module(*inputs)
    other = copy.deepcopy(module)
    other.reset_parameters()
    assert not torch.equal(other.norm.weight, module.norm.weight)
    other.load_state_dict(module.state_dict())
    for same in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(same(*inputs), expected)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(
            {key: value for key, value in module.state_dict().items() if key != "norm.bias"}
        )


@pytest.mark.parametrize("name", NAMES)
def test_compiles_whole_without_recompiling_for_a_new_length(name: str) -> None:
    module, _, _ = module_and_plain(name)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (9, 16, 25):
            inputs = [randn(2, n, D)]
            if name == "TokenFuser":
                inputs.insert(0, randn(2, K, D))
            actual, expected = compiled(*inputs), module(*inputs)
            assert_close(actual, expected)
            grads = [torch.autograd.grad(y.square().sum(), inputs) for y in (actual, expected)]
            for have, want in zip(*grads, strict=True):
                assert_close(have, want)


def run(module: torch.nn.Module, inputs: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
    """The output, and all gradients in one vector."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = module(*inputs)
    gradients = torch.autograd.grad(y, [*inputs, *module.parameters()], dy.to(y.dtype))
    return [y, torch.cat([gradient.flatten() for gradient in gradients])]


def assert_as_accurate_as_plain(
    module: torch.nn.Module, inputs: list[torch.Tensor], dtype: torch.dtype
) -> None:
    """At most twice the error of the plain expression in the same dtype, and two spacings."""
    dy = torch.randn_like(module(*inputs)).to(dtype)
    exact = run(copy.deepcopy(module).double(), [x.double() for x in inputs], dy)
    with torch.autocast("cpu", dtype=dtype, enabled=inputs[0].dtype != dtype):
        actual = run(module, inputs, dy)
        with jair_kernels.use_backend("reference"):
            eager = run(module, inputs, dy)
    assert actual[0].dtype == dtype
    for got, plainly, want in zip(actual, eager, exact, strict=True):
        error, allowed = ((value.double() - want).norm() / want.norm() for value in (got, plainly))
        assert error <= 2 * allowed + 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    module, _, _ = module_and_plain(name)
    inputs = [randn(*shape).to(dtype) for shape in next(shapes for n, shapes in FORWARD if n == name)]
    assert_as_accurate_as_plain(module.to(dtype), inputs, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    module, _, _ = module_and_plain(name)
    inputs = [randn(*shape).float() for shape in next(shapes for n, shapes in FORWARD if n == name)]
    assert_as_accurate_as_plain(module.float(), inputs, torch.bfloat16)


def test_initial_values() -> None:
    torch.manual_seed(0)
    learner, v1, fuser = jair.TokenLearner(512, 64, 256), jair.TokenLearnerV1(64, 48), jair.TokenFuser(256, 8)
    bound = (6 / (512 + 256)) ** 0.5
    assert bound * 0.99 < learner.fc1.weight.abs().max() <= bound
    for kernel in v1.convs.parameters():
        fan_in = 9 * kernel.shape[1]
        assert abs(kernel.std().item() * fan_in**0.5 - 1) < 0.05
        assert kernel.abs().max().item() <= 2 / 0.8796 / fan_in**0.5
    for bias in (learner.fc1.bias, learner.fc2.bias, fuser.fc1.bias, fuser.mix.bias, fuser.mix.weight):
        assert not bias.any()
    assert not fuser(torch.randn(2, 8, 256), torch.randn(2, 5, 256)).any()


def test_repr_shows_the_arguments() -> None:
    shown = "dim=12, num_tokens=3, bottleneck_dim=64, approximate='tanh', eps=1e-06, channels_first=False"
    assert jair.TokenLearner(D, K).extra_repr() == shown
    assert (
        jair.TokenLearnerV1(D, K, False).extra_repr() == "dim=12, num_tokens=3, sum_pooling=False, eps=1e-06"
    )
    assert jair.TokenFuser(D, K, H).extra_repr() == "dim=12, num_tokens=3, bottleneck_dim=5, eps=1e-06"
