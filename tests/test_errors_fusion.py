"""Bad input of the fusion ops: refused in Python, before any kernel runs, by a message naming the argument."""

# ruff: noqa: E501 - a case is one line of a table

from __future__ import annotations

from typing import Any

import pytest
import torch
from bad_fusion_input import (
    ATTENTION,
    D_KV,
    FUSION_OPS,
    GATED,
    H_KV,
    HEAD,
    KINDS_OF_MAIN,
    KV,
    LAYER,
    LIKE,
    MAIN,
    MAIN_NAMES,
    OPERANDS,
    OPTIONS,
    RESAMPLE,
    WITH_PARAMS,
    B,
    D,
    L,
    M,
    N,
    changed,
    nested,
    valid,
    zeros,
)  # fmt: skip

import jair_kernels as jk
from jair_kernels._fusion_samples import PROJECTING

# Second tensors, of each op: (argument, sizes, letters and sizes in the message, may it be None).
FIELDS: dict[str, list[tuple[str, tuple[int, ...], str, bool]]] = {
    ATTENTION: [(name, (B, H_KV, N, HEAD), "", False) for name in "kv"],
    RESAMPLE: [
        ("latents", (L, D), "", False),
        *((name, sizes, "", False) for name, sizes in (("wq", (D, D)), ("wk", (KV, D_KV)), ("wv", (KV, D_KV)))),
        ("wo", (D, D), "", False),
        *((name, (size,), "", True) for name, size in (("bq", D), ("bk", KV), ("bv", KV), ("bo", D))),
    ],
    GATED: [
        ("f", (B, N, D_KV), "", False),
        ("params.wq", (D, D), "[h_d, D] = [any, 16]", False),
        ("params.wk", (KV, D_KV), "[h_kv_d, D_kv] = [any, 10]", False),
        ("params.wv", (KV, D_KV), "[h_kv_d, D_kv] = [8, 10]", False),
        ("params.wo", (D, D), "[D, h_d] = [16, 16]", False),
        ("params.w1", (M, D), "[M, D] = [any, 16]", False),
        ("params.w2", (D, M), "[D, M] = [16, 5]", False),
        *((f"params.{name}", (D,), "[rows] = [16]", True) for name in ("bq", "bo", "b2")),
        *((f"params.{name}", (KV,), "[rows] = [8]", True) for name in ("bk", "bv")),
        ("params.b1", (M,), "[rows] = [5]", True),
        *((f"params.norm_{name}", (D,), "[D] = [16]", True) for name in ("t_weight", "t_bias", "mlp_weight", "mlp_bias")),
        *((f"params.norm_{name}", (D_KV,), "[D] = [10]", True) for name in ("f_weight", "f_bias")),
        *((f"params.{name}", (D,), "[1] or [D] = [16]", True) for name in ("alpha", "beta")),
    ],
    LAYER: [
        ("params.wqkv", (3 * D, D), "[3D, D] = [48, 16]", False),
        ("params.wo", (D, D), "[D, D] = [16, 16]", False),
        ("params.w1", (M, D), "[M, D] = [any, 16]", False),
        ("params.w2", (D, M), "[D, M] = [16, 5]", False),
        ("params.bqkv", (3 * D,), "[rows] = [48]", True),
        *((f"params.{name}", (D,), "[rows] = [16]", True) for name in ("bo", "b2")),
        ("params.b1", (M,), "[rows] = [5]", True),
        *((f"params.norm{name}", (D,), "[D] = [16]", True) for name in ("1_weight", "1_bias", "2_weight", "2_bias")),
    ],
}  # fmt: skip


def assert_refused(op: str, named: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        getattr(jk, op)(**named)
    assert str(raised.value) == message


def every() -> list[Any]:
    cases = MAIN + OPERANDS + OPTIONS
    cases += [((op,), MAIN_NAMES[op], *kind) for op in FUSION_OPS for kind in KINDS_OF_MAIN]
    out = []
    for ops, name, make, error, message in cases:
        for op in ops:
            out.append(pytest.param(op, name, make, error, message, id=f"{op[6:]}-{name}-{message[9:]}"))
    return out


@pytest.mark.parametrize(("op", "name", "make", "error", "message"), every())
def test_bad_argument(op: str, name: str, make: Any, error: type[Exception], message: str) -> None:
    assert_refused(op, changed(valid(op), name, make()), error, f"{name}: {message}")


FIELD_CASES = [
    pytest.param(op, *field, id=f"{op[6:]}-{field[0]}") for op in FUSION_OPS for field in FIELDS[op]
]


@pytest.mark.parametrize(("op", "name", "sizes", "shape", "may_be_none"), FIELD_CASES)
def test_every_second_tensor(
    op: str, name: str, sizes: tuple[int, ...], shape: str, may_be_none: bool
) -> None:
    """Another type, dtype, device, layout or shape, of each tensor beside the main input."""
    named = valid(op)
    wanted = "a tensor or None" if may_be_none else "a tensor"
    bad: list[tuple[Any, type[Exception], str]] = [
        (1.0, TypeError, f"expected {wanted}, got float"),
        (zeros(*sizes, dtype=torch.float64), TypeError, f"expected dtype float32 {LIKE}, got float64"),
        (zeros(*sizes, dtype=torch.int64), TypeError, f"expected dtype float32 {LIKE}, got int64"),
        (zeros(*sizes, device="meta"), ValueError, f"expected device cpu {LIKE}, got meta"),
        (zeros(*sizes).to_sparse(), ValueError, "expected a strided tensor, got layout sparse_coo"),
        (nested(), ValueError, "expected a strided tensor, got layout nested"),
    ]
    if not may_be_none:
        bad.append((None, TypeError, "expected a tensor, got NoneType"))
    if shape:
        longer = (*sizes[:-1], sizes[-1] + 1)
        bad.append((zeros(*longer), ValueError, f"expected shape {shape}, got {list(longer)}"))
        bad.append((zeros(1, *sizes), ValueError, f"expected shape {shape}, got {[1, *sizes]}"))
    for value, error, message in bad:
        assert_refused(op, changed(named, name, value), error, f"{name}: {message}")


@pytest.mark.parametrize("op", WITH_PARAMS)
def test_every_field_of_params_is_in_the_table(op: str) -> None:
    fields = {f"params.{name}" for name in valid(op)["params"]._fields}
    assert {name for name, *_ in FIELDS[op] if name.startswith("params.")} == fields


@pytest.mark.parametrize(
    ("op", "norm"),
    [(GATED, "norm_t"), (GATED, "norm_f"), (GATED, "norm_mlp"), (LAYER, "norm1"), (LAYER, "norm2")],
)
def test_a_norm_has_no_bias_without_a_weight(op: str, norm: str) -> None:
    named = changed(valid(op), f"params.{norm}_weight", None)
    message = f"params.{norm}_bias: expected None where params.{norm}_weight is None, got a tensor"
    assert_refused(op, named, ValueError, message)


def test_the_form_of_the_paper_has_no_norm_before_its_mlp() -> None:
    named = valid(GATED) | {"form": "jair"}
    message = "expected None in form 'jair', which has no norm before its MLP, got a tensor"
    assert_refused(GATED, named, ValueError, f"params.norm_mlp_weight: {message}")
    named = changed(named, "params.norm_mlp_weight", None)
    message = "expected None where params.norm_mlp_weight is None, got a tensor"
    assert_refused(GATED, named, ValueError, f"params.norm_mlp_bias: {message}")


@pytest.mark.parametrize("name", ["norm_f_weight", "norm_f_bias", "bk", "bv"])
def test_keys_that_are_given_are_not_made(name: str) -> None:
    """f [B,N,2 h_kv d] holds keys and values where neither has a weight."""
    given = valid(GATED, kv_width=2 * KV, absent=PROJECTING)
    jk.fused_gated_fusion(**given)
    of_f = changed(given, f"params.{name}", zeros(2 * KV if name.startswith("norm") else KV))
    message = f"params.{name}: expected None where params.wk and params.wv are None, got a tensor"
    assert_refused(GATED, of_f, ValueError, message)


@pytest.mark.parametrize("width", [4, 12, 24, 64])
def test_keys_that_are_given_have_their_widths(width: int) -> None:
    named = changed(valid(GATED, kv_width=2 * KV, absent=PROJECTING), "f", zeros(B, N, width))
    message = "expected 2 h_kv d columns where params.wk and params.wv are None, d = 4 and h_kv a divisor of"
    assert_refused(GATED, named, ValueError, f"f: {message} num_heads = 4, got {width}")


@pytest.mark.parametrize("name", ["wk", "wv"])
def test_keys_alone_are_not_given(name: str) -> None:
    named = changed(valid(GATED), f"params.{name}", None)
    assert_refused(GATED, named, TypeError, f"params.{name}: expected a tensor, got NoneType")


def test_heads_of_a_layer_are_not_too_wide() -> None:
    named = valid(LAYER, d=257, h=1)
    assert_refused(LAYER, named, ValueError, "num_heads: expected a head width d of at most 256, got 257")


@pytest.mark.parametrize("op", FUSION_OPS)
@pytest.mark.parametrize("backend", jk.available_backends())
def test_an_explicit_backend_checks_alike(op: str, backend: str) -> None:
    named = valid(op) | {"mask": zeros(B, N), "backend": backend}
    assert_refused(op, named, TypeError, "mask: expected dtype bool (True = keep), got float32")


@pytest.mark.parametrize("op", FUSION_OPS)
def test_under_autocast_tensors_may_be_of_32_or_16_bits_but_nothing_else(op: str) -> None:
    for name, sizes, *_ in FIELDS[op]:
        named = changed(valid(op), name, zeros(*sizes, dtype=torch.float16))
        with torch.autocast("cpu", torch.bfloat16):
            assert getattr(jk, op)(**named, backend="reference").dtype == torch.bfloat16
            wide = changed(named, name, zeros(*sizes, dtype=torch.float64))
            assert_refused(
                op, wide, TypeError, f"{name}: expected dtype float32, bfloat16, float16, got float64"
            )


@pytest.mark.parametrize("op", FUSION_OPS)
def test_unknown_missing_and_positional_arguments(op: str) -> None:
    named = valid(op)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dropout'"):
        getattr(jk, op)(**named, dropout=0.1)
    with pytest.raises(TypeError, match="missing"):
        getattr(jk, op)(named[MAIN_NAMES[op]])
    with pytest.raises(TypeError, match="positional"):
        getattr(jk, op)(*named.values(), None, None, None, None, None)


@pytest.mark.parametrize(
    ("op", "first"), [(ATTENTION, "k"), (RESAMPLE, "wk"), (GATED, "f"), (LAYER, "params.wo")]
)
def test_the_first_fault_is_named(op: str, first: str) -> None:
    named = changed(valid(op), first, None) | {"mask": zeros(B, N), "backend": "gpu"}
    assert_refused(op, named, TypeError, f"{first}: expected a tensor, got NoneType")


@pytest.mark.parametrize("op", FUSION_OPS)
def test_the_table_starts_from_calls_that_are_valid(op: str) -> None:
    named = valid(op)
    y = getattr(jk, op)(**named)
    assert y.isfinite().all()
    tensors = {name: t for name, t in named.items() if isinstance(t, torch.Tensor)}
    before = {name: t.clone() for name, t in tensors.items()}
    with pytest.raises(ValueError, match=r"^backend: "):
        getattr(jk, op)(**named, backend="gpu")
    assert all(torch.equal(t, before[name]) for name, t in tensors.items())
