"""Resampler, gated fusion, transformer layer, joint fusion against plain definitions in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plain_fusion as plain
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jair
import jair_kernels

D, H, M, L = 12, 3, 20, 4
CONFIG = {
    "dim": D,
    "num_heads": H,
    "mlp_dim": M,
    "num_latents": L,
    "iterations": 2,
    "num_layers": 2,
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    """Parameters of size 1, gates and biases too: at the start most of them are 0 or 1."""
    torch.manual_seed(1)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.4 if parameter.ndim > 1 else 1))
    return module


def assert_same_function(
    module: torch.nn.Module,
    actual: Callable[..., torch.Tensor],
    definition: Callable[..., torch.Tensor],
    *inputs: torch.Tensor,
) -> None:
    """Values, and gradients of every input and every parameter."""
    parameters = dict(module.named_parameters())
    expected = definition(*inputs, parameters)
    got = actual(*inputs)
    assert_close(got, expected)
    grad = torch.randn_like(expected)
    leaves = [*inputs, *parameters.values()]
    wants = torch.autograd.grad(expected, leaves, grad)
    for name, have, want in zip(
        [*range(len(inputs)), *parameters], torch.autograd.grad(got, leaves, grad), wants, strict=True
    ):
        assert want.abs().sum() > 0, f"the definition does not use {name}"
        assert_close(have, want)


MASK = torch.tensor([[True, True, False, False, False], [False, True, True, True, False], [False] * 5])


@pytest.mark.parametrize("masked", [False, True])
def test_latent_resampler(masked: bool) -> None:
    module = scrambled(jair.LatentResampler(D, L, H, kv_dim=9))
    mask = MASK if masked else None
    assert_same_function(
        module, lambda x: module(x, mask), lambda x, p: plain.resample(x, p, H, mask), randn(3, 5, 9)
    )


def test_latent_resampler_options_reach_the_operation() -> None:
    module = scrambled(jair.LatentResampler(D, L, H, norm=True, attend_latents=True, num_kv_heads=1))
    x = randn(2, 5, D)
    p = dict(module.named_parameters())
    expected = jair_kernels.reference.latent_resample(
        *(x, p["latents"], p["q.weight"], p["k.weight"], p["v.weight"], p["out.weight"]),
        bo=p["out.bias"],
        x_norm=(p["norm_x.weight"], p["norm_x.bias"]),
        latents_norm=(p["norm_latents.weight"], p["norm_latents.bias"]),
        num_heads=H,
        num_kv_heads=1,
        attend_latents=True,
    )
    assert_close(module(x), expected)


@pytest.mark.parametrize(("form", "definition"), [("jair", plain.gated_fusion), ("flamingo", plain.flamingo)])
def test_gated_fusion(form: str, definition: Callable[..., torch.Tensor]) -> None:
    module = scrambled(jair.GatedFusion(D, H, M, kv_dim=9, form=form))
    assert_same_function(
        module,
        lambda t, f: module(t, f, MASK),
        lambda t, f, p: definition(t, f, p, H, MASK),
        *(randn(3, 4, D), randn(3, 5, 9)),
    )


def test_gated_fusion_starts_as_the_norm_of_t() -> None:
    module = jair.GatedFusion(D, H, M).double()
    t, f = randn(2, 3, D), randn(2, 4, D)
    assert_close(module(t, f), torch.nn.functional.layer_norm(t, (D,)))
    flamingo = jair.GatedFusion(D, H, M, form="flamingo").double()
    assert torch.equal(flamingo(t, f), t)


def test_kv_range_reaches_the_operation() -> None:
    module = scrambled(jair.GatedFusion(D, H, M))
    t, f = randn(1, 2, D), randn(1, 5, D)
    first = module(t, f, kv_range=torch.tensor([[[0, 2], [2, 5]]]))
    assert_close(first[:, :1], module(t[:, :1], f[:, :2]))
    assert_close(first[:, 1:], module(t[:, 1:], f[:, 2:]))


def test_transformer_layer() -> None:
    module = scrambled(jair.TransformerLayer(D, H, M))
    x = randn(2, 5, D)
    assert_same_function(module, module, lambda x, p: plain.transformer_layer(x, p, H), x)
    mask = MASK[:2]
    kept = module(x, mask)[mask]
    assert_close(kept, plain.transformer_layer(x, dict(module.named_parameters()), H, mask)[mask])


@pytest.mark.parametrize("stream", ["joint", "text"])
@pytest.mark.parametrize("combination", ["weighted", "residual", "none"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_joint_adaptive_fusion(stream: str, combination: str, checkpointing: bool) -> None:
    options = {"stream": stream, "combination": combination, "gradient_checkpointing": checkpointing}
    module = scrambled(jair.JointAdaptiveFusion(jair.JAIRConfig(**CONFIG, **options)))
    mask = MASK[:2]
    assert_same_function(
        module,
        lambda image, text: module(image, text, mask)[0],
        lambda image, text, p: plain.joint_adaptive(image, text, mask, p, H, 2, combination, stream),
        *(randn(2, 9, D), randn(2, 5, D)),
    )


class Products(TorchDispatchMode):
    """Counts matrix products over the rows of the image's tokens."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.widths = rows, list[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) and len(result) == self.rows:
            self.widths.append(result.shape[1])
        return result


def test_stream_text_has_one_product_for_all_keys_and_values() -> None:
    """Of f, which here has another number of rows than t."""
    config = jair.JAIRConfig(**{**CONFIG, "iterations": 3, "num_layers": 0}, stream="text")
    module = scrambled(jair.JointAdaptiveFusion(config))
    module.image_resampler = torch.nn.Identity()
    with Products(rows=14) as counted:
        module(randn(2, 7, D), randn(2, 5, D))
    assert counted.widths == [3 * 2 * D]


def test_blocks_of_another_class_project_for_themselves() -> None:
    """As sharded ones, whose weights are whole only while they run."""

    class Sharded(jair.GatedFusion):
        pass

    module = scrambled(jair.JointAdaptiveFusion(jair.JAIRConfig(**CONFIG, stream="text")))
    inputs = randn(2, 9, D), randn(2, 5, D)
    leaves = [*inputs, *module.parameters()]
    want = module(*inputs, MASK[:2])[0]
    wants = torch.autograd.grad(want, leaves, torch.ones_like(want))
    module.blocks[1].__class__ = Sharded
    with Products(rows=2 * L) as counted:
        y = module(*inputs, MASK[:2])[0]
    assert max(counted.widths) < 4 * D
    assert_close(y, want)
    for have, grad in zip(torch.autograd.grad(y, leaves, torch.ones_like(y)), wants, strict=True):
        assert_close(have, grad)


def test_spatial_resampler() -> None:
    module = scrambled(jair.SpatialResampler(D, L))

    def definition(x: torch.Tensor, p: plain.State) -> torch.Tensor:
        grid = x.transpose(1, 2).unflatten(2, (3, 3))
        for i in range(4):
            grid = torch.nn.functional.gelu(grid) if i else grid
            grid = torch.nn.functional.conv2d(
                grid, p[f"convs.{i}.weight"], p[f"convs.{i}.bias"], padding="same"
            )
        return grid.flatten(2).softmax(-1) @ x

    with torch.no_grad():  # else the softmax is a maximum
        for parameter in module.parameters():
            parameter.mul_(0.3)
    parameters = dict(module.named_parameters())
    x = randn(2, 9, D)
    assert_close(module(x), definition(x, parameters))
    grad = torch.randn(2, L, D, dtype=torch.float64)
    wants = torch.autograd.grad(definition(x, parameters), [x, *parameters.values()], grad)
    for have, want in zip(
        torch.autograd.grad(module(x), [x, *parameters.values()], grad), wants, strict=True
    ):
        assert_close(have, want)


@pytest.mark.parametrize("resampler", ["spatial", "tokenlearner"])
def test_other_image_resamplers_take_the_latents_place(resampler: str) -> None:
    module = scrambled(jair.JointAdaptiveFusion(jair.JAIRConfig(**CONFIG, resampler=resampler)))
    image, text = randn(2, 9, D), randn(2, 5, D)
    tokens, mask = module(image, text)
    assert mask is None
    f = module.image_resampler(image)
    module.image_resampler = torch.nn.Identity()
    assert torch.equal(module(f, text)[0], tokens)


@pytest.mark.parametrize("stream", ["joint", "text"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fusion_compiles_whole(stream: str, checkpointing: bool) -> None:
    options = {"stream": stream, "gradient_checkpointing": checkpointing}
    module = jair.JointAdaptiveFusion(jair.JAIRConfig(**CONFIG, **options)).double()
    image, text, mask = randn(2, 9, D), randn(2, 5, D), MASK[:2]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(image, text, mask)[0], module(image, text, mask)[0])


@pytest.mark.parametrize("stream", ["joint", "text"])
def test_fusion_is_exported_for_any_length_of_text(stream: str) -> None:
    """Its resamplers choose their form by the length where they can; an exported program serves all."""
    module = jair.JointAdaptiveFusion(jair.JAIRConfig(**CONFIG, stream=stream)).double().eval()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2)
    given = randn(3, 9, D), randn(3, 5, D), MASK[:3]
    dims = ({0: batch}, {0: batch, 1: length}, {0: batch, 1: length})
    program = torch.export.export(module, given, dynamic_shapes=dims)
    for b, l in ((1, 2), (2, 40)):
        inputs = randn(b, 9, D), randn(b, l, D), torch.ones(b, l, dtype=torch.bool)
        assert_close(program.module()(*inputs)[0], module(*inputs)[0])


@pytest.mark.parametrize("stream", ["joint", "text"])
def test_autocast_and_backends_agree(stream: str) -> None:
    torch.manual_seed(0)
    module = jair.JointAdaptiveFusion(jair.JAIRConfig(**CONFIG, stream=stream))
    image, text = torch.randn(2, 9, D), torch.randn(2, 5, D)
    exact = module(image, text)[0]
    with jair_kernels.use_backend("reference"):
        torch.testing.assert_close(module(image, text)[0], exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = module(image, text)[0]
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jair.LatentResampler(12, 4, 5), "num_heads: expected a divisor of dim = 12, got 5"),
        (lambda: jair.LatentResampler(12, 4, 4, num_kv_heads=3), "num_kv_heads: expected a divisor"),
        (
            lambda: jair.LatentResampler(600, 4, 2),
            "num_heads: expected a head width d of at most 256, got 300",
        ),
        (lambda: jair.GatedFusion(600, 2, 8), "num_heads: expected a head width d of at most 256, got 300"),
        (
            lambda: jair.TransformerLayer(600, 2, 8),
            "num_heads: expected a head width d of at most 256, got 300",
        ),
        (lambda: jair.GatedFusion(12, 3, 0), "mlp_dim: expected an int >= 1, got 0"),
        (lambda: jair.GatedFusion(12, 3, 8, form="x"), "form: expected 'jair' or 'flamingo', got 'x'"),
        (lambda: jair.TransformerLayer(12, 3, 8, eps=0.0), "eps: expected a finite number > 0"),
        (lambda: jair.SpatialResampler(12, 4)(torch.zeros(1, 8, 12)), "x: expected .* N a square"),
    ],
)
def test_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
