"""The building block query_pool on the CPU against float64: all gradients, dtypes and instruction sets."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import pytest
import torch
from query_pools import EPS, Call, Expectation, run
from torch.utils.flop_counter import FlopCounterMode

from jair_kernels import _backends, _library
from jair_kernels.query_pool import cost, op  # noqa: F401 - op registers the block
from jair_kernels.testing import poisoned_empty

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

SHAPES = [
    (0, 7, 16, 8), (1, 1, 16, 1), (3, 1, 768, 192), (1, 7, 40, 111), (3, 7, 96, 8), (3, 65, 16, 192),
    (1, 65, 40, 1), (3, 65, 96, 111), (1, 197, 40, 8), (3, 197, 96, 65), (2, 5, 3, 2),
]  # fmt: skip
BOTH = (False, True)
CALLS = [Call(*shape, norm=norm, shared=shared) for shape, norm, shared in product(SHAPES, BOTH, BOTH)]
CALLS += [Call(1, 197, 768, 192, norm=norm) for norm in (False, True)]
CALLS += [
    Call(3, n, 96, 20, norm=norm, shared=norm, mask=mask)
    for n, norm, mask in product((7, 70), (False, True), ("some", "empty", "all"))
]
CALLS += [
    Call(2, n, 96, 20, norm=norm, shared=not norm, values=values)
    for n, norm, values in product((1, 7, 130), (False, True), ("shifted", "huge"))
]
CALLS += [
    Call(3, n, 96, 20, norm=norm, layout=layout)
    for n, norm, layout in product((7, 70), (False, True), ("sliced", "transposed", "expanded"))
]
expectation = lru_cache(maxsize=8)(Expectation.of)


def kernel():
    return _backends.block("query_pool", "cpu")


def by_name(call):
    return call.name


def assert_same(ours, theirs):
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    previous = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(previous)


@pytest.mark.parametrize("call", CALLS, ids=by_name)
def test_accurate(call, target_dtype):
    expectation(call, target_dtype).check(kernel())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("b", "n"), [(1, 70), (3, 197), (2, 40)])
def test_threads(b, n, shared, threads, target_dtype):
    expectation(Call(b, n, 40, 70, shared=shared, mask="some"), target_dtype).check(kernel())


def test_more_than_is_kept_for_the_second_pass(threads):
    expectation(Call(1, 7000, 16, 500), torch.float32).check(kernel())


def test_many_tokens(target_dtype):
    expectation(Call(1, 20011, 8, 3), target_dtype).check(kernel())


@pytest.mark.parametrize("norm", [False, True])
def test_masked_nan_goes_nowhere(norm, target_dtype, threads):
    call = Call(3, 70, 40, 20, norm=norm, mask="empty")
    tensors = call.tensors(target_dtype)
    clean = run(kernel(), call, tensors)
    for poison in (torch.nan, torch.inf):
        x = tensors["x"].masked_fill(~tensors["mask"].unsqueeze(-1), poison)
        assert_same(run(kernel(), call, {**tensors, "x": x}), clean)
    assert not clean["y"][0].any()
    assert (clean["softmax"][0] == 0).all()
    assert not clean["dx"][~tensors["mask"]].any()
    if norm:
        assert not clean["stats"][~tensors["mask"]].any()


def test_one_token_is_itself(target_dtype):
    call = Call(2, 1, 96, 8, norm=False)
    tensors = call.tensors(target_dtype)
    result = run(kernel(), call, tensors)
    assert (result["y"] == tensors["x"]).all()
    assert not result["dqueries"].any()


def test_poisoned_memory(target_dtype):
    call = Call(3, 70, 40, 20, mask="some")
    tensors = call.tensors(target_dtype)
    clean = run(kernel(), call, tensors)
    with poisoned_empty():
        assert_same(run(kernel(), call, tensors), clean)


@pytest.mark.parametrize("shared", [False, True])
def test_equal_from_run_to_run(shared, target_dtype, threads):
    call = Call(3, 197, 40, 70, shared=shared)
    tensors = call.tensors(target_dtype)
    assert_same(run(kernel(), call, tensors), run(kernel(), call, tensors))


def test_queries_of_every_image_equal_shared_ones(isa):
    call, own = Call(3, 40, 48, 20), Call(3, 40, 48, 20, shared=False)
    tensors = call.tensors(torch.float64)
    shared = run(kernel(), call, tensors)
    single = run(kernel(), own, {**tensors, "queries": tensors["queries"].expand(3, -1, -1)})
    for name in ("y", "softmax", "stats", "dx"):
        assert torch.equal(single[name], shared[name]), name
    assert torch.allclose(single["dqueries"].sum(0, keepdim=True), shared["dqueries"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("call", [
    Call(2, 7, 12, 3), Call(2, 7, 12, 3, norm=False, shared=False, mask="some"), Call(0, 7, 12, 3),
    Call(1, 1, 1, 1, layout="sliced"),
], ids=by_name)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(call, dtype):
    x, queries, mask, dy = call.tensors(dtype).values()
    forward, backward = kernel().forward, kernel().backward
    y, softmax, stats = forward(x, queries, mask, call.norm, EPS)
    torch.library.opcheck(forward, (x, queries, mask, call.norm, EPS))
    torch.library.opcheck(backward, (dy, x, queries, mask, y, softmax, stats, call.norm))


def test_vmap():
    call = Call(6, 7, 12, 3, mask="some")
    x, queries, mask, _ = call.tensors(torch.float32).values()
    y, softmax, _ = kernel().forward(x, queries, mask, True, EPS)

    def sample(x, mask):
        return kernel().forward(x, queries, mask, True, EPS)[:2]

    folded = torch.func.vmap(sample)(x.unflatten(0, (3, 2)), mask.unflatten(0, (3, 2)))
    assert torch.equal(folded[0].flatten(0, 1), y)
    assert torch.equal(folded[1].flatten(0, 1), softmax)


def test_flops():
    call = Call(2, 7, 12, 3)
    tensors = call.tensors(torch.float32)
    with FlopCounterMode(display=False) as counter:
        run(kernel(), call, tensors)
    assert counter.get_total_flops() == cost.forward_flops(2, 7, 12, 3) + cost.backward_flops(2, 7, 12, 3)


def test_saved_bytes():
    call = Call(2, 7, 12, 3)
    y, softmax, stats = kernel().forward(*list(call.tensors(torch.bfloat16).values())[:3], True, EPS)
    assert y.nbytes + softmax.nbytes + stats.nbytes == cost.saved_bytes(2, 7, 12, 3, True, 2)
