"""Bad input: every mistake is refused in Python, before any kernel runs, by a message naming the argument."""

# ruff: noqa: E501 - a case is one line of a table

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_samples import NAMES, OPS, sample

import jair_kernels as jk

LEARNER, POOL, FUSER = OPS
MLP = (LEARNER, FUSER)
MASKED = (LEARNER, POOL)
B, N, D, H, K = 2, 7, 12, 5, 3
FLOATS = "float32, bfloat16, float16, float64"


def zeros(*sizes: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(sizes, dtype=dtype, device=device)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([zeros(5, D), zeros(7, D)])


# (ops, argument, bad value, error, message after "<argument>: "); values are made when the case runs.
Case = tuple[tuple[str, ...], str, Callable[[], Any], type[Exception], str]

MAIN: list[Case] = [
    (OPS, "x", lambda: None, TypeError, "expected a tensor, got NoneType"),
    (OPS, "x", lambda: [[1.0]], TypeError, "expected a tensor, got list"),
    (OPS, "x", lambda: zeros(B, N, D).numpy(), TypeError, "expected a tensor, got ndarray"),
    (OPS, "x", lambda: zeros(N, D), ValueError, "expected 3 dimensions [B, N, D], got shape [7, 12]"),
    (OPS, "x", lambda: zeros(B, 1, N, D), ValueError, "expected 3 dimensions [B, N, D], got shape [2, 1, 7, 12]"),
    (OPS, "x", lambda: zeros(), ValueError, "expected 3 dimensions [B, N, D], got shape []"),
    (OPS, "x", lambda: zeros(B, 0, D), ValueError, "expected N >= 1, got shape [2, 0, 12]"),
    (OPS, "x", lambda: zeros(B, N, 0), ValueError, "expected D >= 1, got shape [2, 7, 0]"),
    (OPS, "x", lambda: zeros(B, N, D, dtype=torch.int64), TypeError, f"expected dtype {FLOATS}, got int64"),
    (OPS, "x", lambda: zeros(B, N, D, dtype=torch.bool), TypeError, f"expected dtype {FLOATS}, got bool"),
    (OPS, "x", lambda: zeros(B, N, D, dtype=torch.complex64), TypeError, f"expected dtype {FLOATS}, got complex64"),
    (OPS, "x", lambda: zeros(B, N, D).to(torch.float8_e4m3fn), TypeError, f"expected dtype {FLOATS}, got float8_e4m3fn"),
    (OPS, "x", lambda: zeros(B, N, D).to_sparse(), ValueError, "expected a strided tensor, got layout sparse_coo"),
    (OPS, "x", nested, ValueError, "expected a strided tensor, got layout nested"),
]  # fmt: skip

OPERANDS: list[Case] = [
    ((POOL,), "scores", lambda: None, TypeError, "expected a tensor, got NoneType"),
    ((POOL,), "scores", lambda: zeros(B, N), ValueError, "expected shape [B, N, K] = [2, 7, any], got [2, 7]"),
    ((POOL,), "scores", lambda: zeros(B, N + 1, K), ValueError, "expected shape [B, N, K] = [2, 7, any], got [2, 8, 3]"),
    ((POOL,), "scores", lambda: zeros(1, N, K), ValueError, "expected shape [B, N, K] = [2, 7, any], got [1, 7, 3]"),
    ((POOL,), "scores", lambda: zeros(B, K, N), ValueError, "expected shape [B, N, K] = [2, 7, any], got [2, 3, 7]"),
    ((POOL,), "scores", lambda: zeros(B, N, 0), ValueError, "expected K >= 1, got shape [2, 7, 0]"),
    ((POOL,), "scores", lambda: zeros(B, N, K, dtype=torch.bfloat16), TypeError, "expected dtype float32 like the main input, got bfloat16"),
    ((POOL,), "scores", lambda: zeros(B, N, K, dtype=torch.int32), TypeError, "expected dtype float32 like the main input, got int32"),
    ((POOL,), "scores", lambda: zeros(B, N, K, device="meta"), ValueError, "expected device cpu like the main input, got meta"),
    ((POOL,), "scores", lambda: zeros(B, N, K).to_sparse(), ValueError, "expected a strided tensor, got layout sparse_coo"),
    ((FUSER,), "tokens", lambda: 3, TypeError, "expected a tensor, got int"),
    ((FUSER,), "tokens", lambda: zeros(B, K + 1, D), ValueError, "expected shape [B, K, D] = [2, 3, 12], got [2, 4, 12]"),
    ((FUSER,), "tokens", lambda: zeros(B, K, D + 1), ValueError, "expected shape [B, K, D] = [2, 3, 12], got [2, 3, 13]"),
    ((FUSER,), "tokens", lambda: zeros(K, D), ValueError, "expected shape [B, K, D] = [2, 3, 12], got [3, 12]"),
    ((FUSER,), "tokens", lambda: zeros(B, K, D, dtype=torch.float64), TypeError, "expected dtype float32 like the main input, got float64"),
    ((FUSER,), "tokens", lambda: zeros(B, K, D, device="meta"), ValueError, "expected device cpu like the main input, got meta"),
    (MLP, "w1", lambda: None, TypeError, "expected a tensor, got NoneType"),
    (MLP, "w1", lambda: zeros(D, H), ValueError, "expected shape [H, D] = [any, 12], got [12, 5]"),
    (MLP, "w1", lambda: zeros(H), ValueError, "expected shape [H, D] = [any, 12], got [5]"),
    (MLP, "w1", lambda: zeros(1, H, D), ValueError, "expected shape [H, D] = [any, 12], got [1, 5, 12]"),
    (MLP, "w1", lambda: zeros(0, D), ValueError, "expected H >= 1, got shape [0, 12]"),
    (MLP, "w1", lambda: zeros(H, D, dtype=torch.float16), TypeError, "expected dtype float32 like the main input, got float16"),
    (MLP, "w1", lambda: zeros(H, D, device="meta"), ValueError, "expected device cpu like the main input, got meta"),
    (MLP, "w1", lambda: zeros(H, D).to_sparse_csr(), ValueError, "expected a strided tensor, got layout sparse_csr"),
    (MLP, "w1", lambda: torch.nn.Linear(D, H), TypeError, "expected a tensor, got Linear"),
    (MLP, "b1", lambda: zeros(H + 1), ValueError, "expected shape [H] = [5], got [6]"),
    (MLP, "b1", lambda: zeros(H, 1), ValueError, "expected shape [H] = [5], got [5, 1]"),
    (MLP, "b1", lambda: zeros(1), ValueError, "expected shape [H] = [5], got [1]"),
    (MLP, "b1", lambda: 0.0, TypeError, "expected a tensor or None, got float"),
    (MLP, "b1", lambda: zeros(H, dtype=torch.float64), TypeError, "expected dtype float32 like the main input, got float64"),
    (MLP, "w2", lambda: None, TypeError, "expected a tensor, got NoneType"),
    (MLP, "w2", lambda: zeros(H, K), ValueError, "expected shape [K, H] = [any, 5], got [5, 3]"),
    (MLP, "w2", lambda: zeros(K, D), ValueError, "expected shape [K, H] = [any, 5], got [3, 12]"),
    (MLP, "w2", lambda: zeros(0, H), ValueError, "expected K >= 1, got shape [0, 5]"),
    (MLP, "w2", lambda: zeros(K, H, dtype=torch.bfloat16), TypeError, "expected dtype float32 like the main input, got bfloat16"),
    (MLP, "b2", lambda: zeros(H), ValueError, "expected shape [K] = [3], got [5]"),
    (MLP, "b2", lambda: zeros(K, device="meta"), ValueError, "expected device cpu like the main input, got meta"),
    (MLP, "b2", lambda: False, TypeError, "expected a tensor or None, got bool"),
    (MLP, "norm_weight", lambda: zeros(H), ValueError, "expected shape [D] = [12], got [5]"),
    (MLP, "norm_weight", lambda: zeros(D, dtype=torch.int64), TypeError, "expected dtype float32 like the main input, got int64"),
    (MLP, "norm_weight", lambda: 1.0, TypeError, "expected a tensor or None, got float"),
    (MLP, "norm_bias", lambda: zeros(1, D), ValueError, "expected shape [D] = [12], got [1, 12]"),
    (MLP, "norm_bias", lambda: zeros(D, device="meta"), ValueError, "expected device cpu like the main input, got meta"),
]  # fmt: skip

OPTIONS: list[Case] = [
    (MASKED, "mask", lambda: [True], TypeError, "expected a bool tensor or None, got list"),
    (MASKED, "mask", lambda: zeros(B, N), TypeError, "expected dtype bool (True = keep), got float32"),
    (MASKED, "mask", lambda: zeros(B, N, dtype=torch.int64), TypeError, "expected dtype bool (True = keep), got int64"),
    (MASKED, "mask", lambda: zeros(B, N + 1, dtype=torch.bool), ValueError, "expected shape [B, N] = [2, 7], got [2, 8]"),
    (MASKED, "mask", lambda: zeros(1, N, dtype=torch.bool), ValueError, "expected shape [B, N] = [2, 7], got [1, 7]"),
    (MASKED, "mask", lambda: zeros(N, dtype=torch.bool), ValueError, "expected shape [B, N] = [2, 7], got [7]"),
    (MASKED, "mask", lambda: zeros(B, N, 1, dtype=torch.bool), ValueError, "expected shape [B, N] = [2, 7], got [2, 7, 1]"),
    (MASKED, "mask", lambda: zeros(B, N, dtype=torch.bool, device="meta"), ValueError, "expected device cpu like the main input, got meta"),
    (MASKED, "mask", lambda: zeros(B, N, dtype=torch.bool).to_sparse(), ValueError, "expected a strided tensor, got layout sparse_coo"),
    (MLP, "eps", lambda: 0.0, ValueError, "expected a finite number > 0, got 0.0"),
    (MLP, "eps", lambda: -1e-6, ValueError, "expected a finite number > 0, got -1e-06"),
    (MLP, "eps", lambda: float("nan"), ValueError, "expected a finite number > 0, got nan"),
    (MLP, "eps", lambda: float("inf"), ValueError, "expected a finite number > 0, got inf"),
    (MLP, "eps", lambda: 10**400, ValueError, "expected a finite number > 0, got 1" + 400 * "0"),
    (MLP, "eps", lambda: None, TypeError, "expected a number, got NoneType"),
    (MLP, "eps", lambda: "1e-6", TypeError, "expected a number, got str"),
    (MLP, "eps", lambda: True, TypeError, "expected a number, got bool"),
    (MLP, "eps", lambda: zeros(), TypeError, "expected a number, got Tensor"),
    (MLP, "approximate", lambda: "erf", ValueError, "expected 'tanh' or 'none', got 'erf'"),
    (MLP, "approximate", lambda: None, ValueError, "expected 'tanh' or 'none', got None"),
    (MLP, "approximate", lambda: True, ValueError, "expected 'tanh' or 'none', got True"),
    ((POOL,), "weighting", lambda: "relu", ValueError, "expected 'softmax' or 'sigmoid', got 'relu'"),
    ((POOL,), "weighting", lambda: None, ValueError, "expected 'softmax' or 'sigmoid', got None"),
    ((POOL,), "weighting", lambda: ["softmax"], ValueError, "expected 'softmax' or 'sigmoid', got ['softmax']"),
    ((POOL,), "reduction", lambda: "max", ValueError, "expected 'sum' or 'mean', got 'max'"),
    ((POOL,), "reduction", lambda: "none", ValueError, "expected 'sum' or 'mean', got 'none'"),
    (OPS, "backend", lambda: "gpu", ValueError, "expected one of reference, cpu, triton, cuda, got 'gpu'"),
    (OPS, "backend", lambda: "CPU", ValueError, "expected one of reference, cpu, triton, cuda, got 'CPU'"),
    (OPS, "backend", lambda: 1, ValueError, "expected one of reference, cpu, triton, cuda, got 1"),
    (OPS, "backend", lambda: torch.device("cpu"), ValueError, "expected one of reference, cpu, triton, cuda, got device(type='cpu')"),
]  # fmt: skip


def every(cases: list[Case]) -> list[Any]:
    out = []
    for ops, name, make, error, message in cases:
        for op in ops:
            out.append(pytest.param(op, name, make, error, message, id=f"{NAMES[op]}-{name}-{message[9:]}"))
    return out


@pytest.mark.parametrize(("op", "name", "make", "error", "message"), every(MAIN + OPERANDS + OPTIONS))
def test_bad_argument(op: str, name: str, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        sample(op, B, N, D, H, K)(**{name: make()})
    assert str(raised.value) == f"{name}: {message}"


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["reference", *(b for b in jk.available_backends() if b != "reference")])
def test_an_explicit_backend_checks_alike(op: str, backend: str) -> None:
    with pytest.raises(ValueError, match=r"^x: expected N >= 1, got shape \[2, 0, 12\]$"):
        sample(op)(x=zeros(2, 0, 12), backend=backend)


@pytest.mark.parametrize("op", MLP)
@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2", "norm_weight", "norm_bias"])
def test_under_autocast_parameters_may_be_of_32_or_16_bits_but_nothing_else(op: str, name: str) -> None:
    call = sample(op)
    parameter = call.tensors[name]
    with torch.autocast("cpu", torch.bfloat16):
        assert call(**{name: parameter.half()}, backend="reference").dtype == torch.bfloat16
        for refused in (torch.int64, torch.float64):  # autocast leaves float64 alone
            with pytest.raises(TypeError) as raised:
                call(**{name: parameter.to(refused)})
            message = f"{name}: expected dtype float32, bfloat16, float16, got {str(refused)[6:]}"
            assert str(raised.value) == message


@pytest.mark.parametrize("op", OPS)
def test_unknown_and_missing_arguments(op: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'dropout'"):
        sample(op)(dropout=0.1)
    with pytest.raises(TypeError, match="missing"):
        getattr(jk, op)(zeros(B, N, D))


@pytest.mark.parametrize("op", OPS)
def test_options_are_keyword_only(op: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        getattr(jk, op)(*sample(op).tensors.values(), "softmax", None, None, None)


@pytest.mark.parametrize("op", MLP)
def test_the_first_fault_in_the_order_of_the_signature_is_named(op: str) -> None:
    with pytest.raises(ValueError, match=r"^w1: "):
        sample(op)(w1=zeros(H, D + 1), w2=zeros(K, H + 1), eps=-1)


def test_numpy_numbers_are_numbers() -> None:
    np = pytest.importorskip("numpy")
    call = sample(LEARNER)
    assert torch.equal(call(eps=np.float64(1e-6)), call())
    assert torch.allclose(call(eps=np.float32(1e-6)), call())


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_changed_by_a_refused_call(op: str) -> None:
    call = sample(op).requiring_grad()
    before = {name: t.detach().clone() for name, t in call.tensors.items()}
    with pytest.raises(ValueError, match=r"^backend: "):
        call(backend="gpu")
    assert all(torch.equal(t, before[name]) for name, t in call.tensors.items())
