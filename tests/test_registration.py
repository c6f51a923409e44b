"""What the dispatcher knows of every op: schema, fake kernel, FLOP formula, autograd, what it saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_samples import NAMES, OPS, Call, assert_close, sample
from torch.utils.flop_counter import FlopCounterMode

from jair_kernels import _library, token_pool, tokenfuser, tokenlearner

pytestmark = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))

FOLDERS = {"fused_tokenlearner": tokenlearner, "fused_token_pool": token_pool, "fused_tokenfuser": tokenfuser}
SIZES = {"b": 2, "n": 7, "d": 12, "h": 5, "k": 3}
PARAMETERS = ("w1", "b1", "w2", "b2", "norm_weight", "norm_bias")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

MLP = "Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? norm_weight, Tensor? norm_bias"
MLP_GRADIENTS = "Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dnorm_weight, Tensor dnorm_bias"
SCHEMAS = {
    "token_pool_forward": (
        "Tensor x, Tensor scores, Tensor? mask, bool sigmoid, bool mean",
        "Tensor y, Tensor softmax",
    ),
    "token_pool_backward": (
        "Tensor dy, Tensor x, Tensor scores, Tensor? mask, Tensor? y, Tensor softmax, bool sigmoid,"
        " bool mean",
        "Tensor dx, Tensor dscores",
    ),
    "tokenlearner_forward": (
        f"Tensor x, {MLP}, Tensor? mask, float eps, bool tanh, bool keep",
        "Tensor y, Tensor softmax, Tensor stats, Tensor hidden",
    ),
    "tokenlearner_backward": (
        f"Tensor dy, Tensor x, {MLP}, Tensor? mask, Tensor? y, Tensor softmax, Tensor stats,"
        " Tensor hidden, bool tanh",
        f"Tensor dx, {MLP_GRADIENTS}",
    ),
    "tokenfuser_forward": (
        f"Tensor x, Tensor tokens, {MLP}, float eps, bool tanh, bool keep",
        "Tensor y, Tensor stats, Tensor hidden",
    ),
    "tokenfuser_backward": (
        f"Tensor dy, Tensor x, Tensor tokens, {MLP}, Tensor stats, Tensor hidden, bool tanh",
        f"Tensor dx, Tensor dtokens, {MLP_GRADIENTS}",
    ),
}

ROW = "Tensor? x_stats, Tensor? x_weight, Tensor? x_bias, Tensor? update, Tensor? gate"
ATTENTION = "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? kv_range"
BLOCKS = {
    "cross_attention_forward": (f"{ATTENTION}, float scale", "(Tensor o, Tensor stats)"),
    "cross_attention_backward": (
        f"Tensor dout, {ATTENTION}, Tensor? o, Tensor stats, float scale, bool packed",
        "(Tensor dq, Tensor dkv)",
    ),
    "query_pool_forward": (
        "Tensor x, Tensor queries, Tensor? mask, bool norm, float eps",
        "(Tensor y, Tensor softmax, Tensor stats)",
    ),
    "query_pool_backward": (
        "Tensor dy, Tensor x, Tensor queries, Tensor? mask, Tensor y, Tensor softmax, Tensor stats,"
        " bool norm",
        "(Tensor dx, Tensor dqueries)",
    ),
    "add_norm_forward": (
        f"Tensor x, {ROW}, bool norm, Tensor? weight, Tensor? bias, float eps",
        "(Tensor z, Tensor y, Tensor stats)",
    ),
    "add_norm_backward": (
        "Tensor dy, Tensor? dz, Tensor z, Tensor stats, Tensor? weight, Tensor? bias",
        "(Tensor dx, Tensor dweight, Tensor dbias)",
    ),
    "gelu_forward": ("Tensor h, bool tanh", "Tensor g"),
    "gelu_backward": (
        "Tensor dg, Tensor h, bool tanh, bool sums",
        "(Tensor dh, Tensor g, Tensor total)",
    ),
}
# On the CPU alone: elsewhere PyTorch's own are as good.
SUMS = {"column_sum": ("Tensor rows", "Tensor"), "row_dot": ("Tensor a, Tensor b", "Tensor")}
ALL_SCHEMAS = {name: (given, f"({results})") for name, (given, results) in SCHEMAS.items()} | BLOCKS

# How a call can differ, in ways that reach the kernels' signatures: (name, changes of a sample call).
VARIANTS: dict[str, Any] = {
    "plain": lambda op: sample(op, **SIZES),
    "bare": lambda op: bare(sample(op, **SIZES)),
    "no images": lambda op: sample(op, **{**SIZES, "b": 0}),
    "one token": lambda op: sample(op, **{**SIZES, "n": 1, "k": 1}),
    "strided": lambda op: strided(sample(op, **SIZES)),
    **{str(d)[6:]: lambda op, d=d: sample(op, **SIZES, dtype=d) for d in FLOATS[1:]},
}
MASKED_VARIANTS: dict[str, Any] = {
    "masked": lambda op: sample(op, **SIZES, masked=True),
    "sigmoid mean": lambda op: sample(op, **SIZES, masked=True),
}


def bare(call: Call) -> Call:
    """Without what may be None."""
    return Call(
        call.op,
        {n: t for n, t in call.tensors.items() if n not in ("b1", "b2", "norm_weight", "norm_bias")},
        {},
    )


def strided(call: Call) -> Call:
    """x with tokens as its innermost axis."""
    tensors = dict(call.tensors)
    tensors["x"] = tensors["x"].transpose(1, 2).contiguous().transpose(1, 2)
    return Call(call.op, tensors, {})


def cases() -> list[Any]:
    out = [
        pytest.param(op, make, False, id=f"{NAMES[op]}-{name}")
        for op in OPS
        for name, make in VARIANTS.items()
    ]
    for op in ("fused_tokenlearner", "fused_token_pool"):
        out.append(pytest.param(op, MASKED_VARIANTS["masked"], False, id=f"{NAMES[op]}-masked"))
    out.append(
        pytest.param("fused_token_pool", MASKED_VARIANTS["sigmoid mean"], True, id="token_pool-sigmoid mean")
    )
    return out


def kernel(name: str) -> Any:
    return getattr(torch.ops.jair_kernels, name).default


def forward_arguments(call: Call, sigmoid_mean: bool = False) -> tuple[Any, ...]:
    """The arguments of the op `<name>_forward`, as its schema has them; without a mask it keeps h."""
    t = call.tensors
    mask = t.get("mask")
    if call.op == "fused_token_pool":
        return (t["x"], t["scores"], mask, sigmoid_mean, sigmoid_mean)
    parameters = tuple(t.get(name) for name in PARAMETERS)
    if call.op == "fused_tokenfuser":
        return (t["x"], t["tokens"], *parameters, 1e-6, True, True)
    return (t["x"], *parameters, mask, 1e-6, True, mask is None)


def backward_arguments(call: Call, forward: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of `<name>_backward` after that forward; dy is the output itself."""
    y, *saved = kernel(f"{NAMES[call.op]}_forward")(*forward)
    if call.op == "fused_token_pool":
        return (y, *forward[:3], y, *saved, *forward[3:])
    if call.op == "fused_tokenfuser":
        return (y, *forward[:8], *saved, forward[-2])
    return (y, *forward[:8], y, *saved, forward[-2])


def both(op: str, make: Any, sigmoid_mean: bool) -> list[tuple[Any, tuple[Any, ...]]]:
    """Forward and backward kernel with their arguments."""
    call = make(op)
    forward = forward_arguments(call, sigmoid_mean)
    backward = backward_arguments(call, forward)
    return [(kernel(f"{NAMES[op]}_forward"), forward), (kernel(f"{NAMES[op]}_backward"), backward)]


@pytest.mark.parametrize("name", [*ALL_SCHEMAS, *SUMS])
def test_schema(name: str) -> None:
    schema = kernel(name)._schema
    arguments, results = (ALL_SCHEMAS | SUMS)[name]
    assert str(schema) == f"jair_kernels::{name}({arguments}) -> {results}"
    assert not schema.is_mutable


def test_the_ops_are_those_of_the_schemas_their_twins_and_the_isa() -> None:
    names = torch._C._dispatch_get_all_op_names()
    ours = {name.split("::")[1] for name in names if name.startswith("jair_kernels::")}
    twins = {f"{name}_triton": name for name in ALL_SCHEMAS}
    if _library.has_operator("tokenlearner_pool", "CUDA"):  # surrounded by kernels in Triton
        twins |= {f"tokenlearner_{way}_cuda": f"tokenlearner_{way}" for way in ("forward", "backward")}
    passes = {f"tokenlearner_{name}" for name in ("pool", "inputs", "sums")}
    alone = {"gate_backward_triton"}  # other backends leave it to PyTorch
    processor = {"cpu_is_not_intel", "cpu_isa", "cpu_isa_best", "set_cpu_isa"}
    assert ours == {*ALL_SCHEMAS, *SUMS, *twins, *passes, *alone, *processor}
    for twin, name in twins.items():
        one, other = kernel(name)._schema, kernel(twin)._schema
        assert [(a.name, str(a.type)) for a in one.arguments] == [
            (a.name, str(a.type)) for a in other.arguments
        ]
        assert [str(r.type) for r in one.returns] == [str(r.type) for r in other.returns]


@pytest.mark.parametrize(("op", "make", "sigmoid_mean"), cases())
def test_opcheck(op: str, make: Any, sigmoid_mean: bool) -> None:
    for run, arguments in both(op, make, sigmoid_mean):
        torch.library.opcheck(run, arguments)


@pytest.mark.parametrize(("op", "make", "sigmoid_mean"), cases())
def test_fake_kernels_agree_with_the_real_ones(op: str, make: Any, sigmoid_mean: bool) -> None:
    for run, arguments in both(op, make, sigmoid_mean):
        real = run(*arguments)
        meta = run(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))
        for a, b in zip(real, meta, strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
            assert b.device.type == "meta"


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
def test_meta_tensors(op: str, backend: str | None) -> None:
    call = sample(op, **SIZES)
    meta = Call(op, {n: t.to("meta").requires_grad_() for n, t in call.tensors.items()}, {})
    y = meta(backend=backend)
    assert (y.device.type, y.shape, y.dtype) == ("meta", call.reference().shape, torch.float32)
    y.sum().backward()
    for name, tensor in meta.tensors.items():
        assert tensor.grad is not None, name
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.dtype == tensor.dtype


@pytest.mark.parametrize("op", OPS)
def test_fake_tensors(op: str) -> None:
    with torch._subclasses.FakeTensorMode() as mode:
        call = sample(op, **SIZES).requiring_grad()
        y = call(backend="cpu")
        y.sum().backward()
    assert isinstance(y, torch._subclasses.FakeTensor)
    assert y.fake_mode is mode
    assert all(t.grad.shape == t.shape for t in call.differentiable().values())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("masked", [False, True])
def test_flops_are_those_of_the_cost_table(op: str, masked: bool) -> None:
    if masked and op == "fused_tokenfuser":
        masked = False
    call = sample(op, **SIZES, masked=masked).requiring_grad()
    shape = [SIZES[s] for s in ("bndk" if op == "fused_token_pool" else "bndhk")]
    cost = FOLDERS[op].cost
    with FlopCounterMode(display=False) as forward:
        y = call(backend="cpu")
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == cost.forward_flops(*shape)
    assert backward.get_total_flops() == cost.backward_flops(*shape)


@pytest.mark.parametrize("op", OPS)
def test_the_cost_table_counts_the_products_of_the_reference(op: str) -> None:
    call = sample(op, **SIZES).requiring_grad()
    shape = [SIZES[s] for s in ("bndk" if op == "fused_token_pool" else "bndhk")]
    with FlopCounterMode(display=False) as forward:
        y = call.reference()
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == FOLDERS[op].cost.forward_flops(*shape)
    assert backward.get_total_flops() == FOLDERS[op].cost.backward_flops(*shape)


def saved_beyond_inputs(call: Call, **changes: Any) -> int:
    """Bytes that the graph of one call keeps alive, without its inputs and parameters."""
    inputs = {t.untyped_storage().data_ptr() for t in call.tensors.values()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call(**changes)
    attributes = (
        [v for v in vars(y.grad_fn).values() if isinstance(v, torch.Tensor)]
        if hasattr(y.grad_fn, "__dict__")
        else []
    )
    assert attributes == [], "a tensor on ctx escapes the hooks"
    return sum(kept.values())


def expected_saved_bytes(op: str, d: int, dtype: torch.dtype) -> int:
    b, n, h, k = (SIZES[s] for s in "bnhk")
    statistic = 8 if dtype == torch.float64 else 4
    hidden = 2 * b * n * h if dtype.itemsize == 2 and 4 * h <= d else 0
    if op == "fused_token_pool":
        return 2 * b * k * statistic
    return hidden + 2 * b * (n if op == "fused_tokenfuser" else n + k) * statistic


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("d", [12, 20])  # from 20 on the hidden layer is kept in 16 bits
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
def test_saved_for_backward(op: str, d: int, dtype: torch.dtype) -> None:
    sizes = SIZES | {"d": d}
    call = sample(op, **sizes, dtype=dtype).requiring_grad()
    saved = saved_beyond_inputs(call, backend="cpu")
    assert saved == expected_saved_bytes(op, d, dtype)
    if op == "fused_tokenlearner":
        assert saved == tokenlearner.cost.saved_bytes(*(sizes[s] for s in "bndhk"), dtype)


def test_saved_for_backward_of_the_advertised_shape() -> None:
    call = sample("fused_tokenlearner", 16, 196, 768, 64, 8).requiring_grad()
    assert saved_beyond_inputs(call, backend="cpu") <= 26_112


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_saved_without_grad(op: str) -> None:
    call = sample(op, **SIZES).requiring_grad()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = call(backend="cpu")
        assert y.grad_fn is None
        assert_close(y, call.reference())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
def test_recording_changes_no_bit(op: str, dtype: torch.dtype) -> None:
    call = sample(op, 2, 33, 40, 10, 5, dtype=dtype)
    assert torch.equal(call.requiring_grad()(backend="cpu"), call(backend="cpu"))


@pytest.mark.parametrize("op", OPS)
def test_inference_tensors_as_inputs(op: str) -> None:
    with torch.inference_mode():
        call = sample(op, **SIZES)
        assert_close(call(backend="cpu"), call.reference())
    assert_close(call(backend="cpu"), call.reference())


@pytest.mark.parametrize("op", OPS)
def test_gradients_only_for_those_who_ask(op: str) -> None:
    full = sample(op, **SIZES).requiring_grad()
    full(backend="cpu").square().sum().backward()
    for name in full.differentiable():
        call = sample(op, **SIZES)
        call.tensors[name].requires_grad_()
        call(backend="cpu").square().sum().backward()
        assert torch.equal(call.tensors[name].grad, full.tensors[name].grad), name
        assert all(t.grad is None for other, t in call.tensors.items() if other != name)
