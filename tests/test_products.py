"""Matrix products of the composed ops: PyTorch's own, and oneDNN's in its place where that is faster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jair_kernels import _library, _products
from jair_kernels._fusion_samples import FUSION_OPS
from jair_kernels.testing import Expectation, FusionCase, run

pytestmark = [
    pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error)),
    pytest.mark.skipif(
        not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN"
    ),
]

_, RESAMPLE, GATED, LAYER = FUSION_OPS
M, K, N = 37, 50, 21
WORTHWHILE = _products._WORTHWHILE
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dense": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "columns of a wider matrix": lambda t: torch.cat([torch.full_like(t, torch.nan), t], 1)[:, t.shape[1] :],
    "every second row": lambda t: t.repeat_interleave(2, 0)[::2],
}
CASES = [
    FusionCase(LAYER, 2, 33, 33, 16, h=3, mask="nan"),
    FusionCase(LAYER, 2, 9, 9, options={"causal": True}),
    FusionCase(GATED, 3, 33, 9, 16, h=3, kv_width=40, mask="nan", ranges="wild"),
    FusionCase(GATED, 2, 17, 9, gates="channels", options={"form": "flamingo"}),
    FusionCase(RESAMPLE, 2, 7, 20, h=4, h_kv=2, mask="nan", options={"method": "projected"}),
    FusionCase(RESAMPLE, 2, 7, 20, shared=False, options={"method": "absorbed"}),
]


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """oneDNN for products of any size; the sizes of those that it has computed."""
    sizes: list[tuple[int, ...]] = []
    multiply = torch.ops.mkldnn._linear_pointwise

    def counted(a: torch.Tensor, weight: torch.Tensor, *args: object) -> torch.Tensor:
        assert weight.is_contiguous() or weight.mT.is_contiguous(), "oneDNN is fast with dense weights alone"
        sizes.append((*a.shape, weight.shape[0]))
        y: torch.Tensor = multiply(a, weight, *args)
        return y

    monkeypatch.setattr(_products, "_ONEDNN", counted)
    monkeypatch.setattr(_products, "_WORTHWHILE", 0)
    return sizes


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_values(left: str, right: str, with_bias: bool, onednn: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    a, b = LAYOUTS[left](torch.randn(M, K)), LAYOUTS[right](torch.randn(K, N))
    bias = torch.randn(N) if with_bias else None
    y = _products.product(a, b, bias)
    exact = a.double() @ b.double() + (0 if bias is None else bias.double())
    assert onednn == [(M, K, N)]
    assert y.is_contiguous()
    assert (y - exact).abs().max() <= 2e-6 * (a.double().abs() @ b.double().abs()).max()


@pytest.mark.parametrize("depth", [1, 1024, 1025, 5000])
def test_deep_sums_are_as_accurate_as_pytorchs(depth: int, onednn: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    a, b, bias = torch.randn(M, depth), torch.randn(N, depth).mT, torch.randn(N)
    exact = torch.addmm(bias.double(), a.double(), b.double())
    ours, theirs = ((y - exact).norm() for y in (_products.product(a, b, bias), torch.addmm(bias, a, b)))
    assert ours <= 2 * theirs + 1e-7 * exact.norm()
    assert [size[1] for size in onednn] == [len(part) for part in b.chunk(-(-depth // 1024))]


def test_added_goes_where_the_total_is(onednn: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    total, a, b = torch.randn(M, N), torch.randn(M, 1500), torch.randn(1500, N)
    exact = total.double() + a.double() @ b.double()
    y = _products.added(total, a, b)
    assert y is total
    assert (y - exact).abs().max() <= 2e-6 * (a.double().abs() @ b.double().abs()).max()
    assert onednn == [(M, 750, N)] * 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_composed_ops(case: FusionCase, onednn: list[tuple[int, ...]]) -> None:
    expectation = Expectation.of(case.sample())
    expectation.check("cpu")
    assert len(onednn) > 4
    first, second = run(expectation.sample, "cpu"), run(expectation.sample, "cpu")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_it_is_left_out_where_others_look_on(onednn: list[tuple[int, ...]]) -> None:
    """Counters, compilers, transforms and other dtypes meet PyTorch's own products."""
    a, b = torch.randn(M, K), torch.randn(K, N)
    with FlopCounterMode(display=False) as counter:
        _products.product(a, b)
    assert counter.get_total_flops() == 2 * M * K * N
    torch.compile(_products.product, fullgraph=True, backend="eager")(a, b)
    torch.func.vmap(_products.product)(a[None], b[None])
    torch.autograd.grad(_products.product(a.requires_grad_(), b).sum(), a)
    _products.product(a.detach().double(), b.double())
    _products.product(a.detach().bfloat16(), b.bfloat16())
    with torch.backends.mkldnn.flags(enabled=False):
        _products.product(a.detach(), b)
    assert onednn == []


def test_small_products_are_pytorchs(monkeypatch: pytest.MonkeyPatch, onednn: list[tuple[int, ...]]) -> None:
    monkeypatch.setattr(_products, "_WORTHWHILE", WORTHWHILE)
    a, b = torch.randn(64, 128), torch.randn(128, 256)
    _products.product(a[:63], b)
    assert onednn == []
    _products.product(a, b)
    assert onednn == [(64, 128, 256)]
