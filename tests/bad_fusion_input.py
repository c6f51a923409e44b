"""Bad input of the fusion ops as tables: an argument, a bad value, and the message that refuses it."""

# ruff: noqa: E501 - a case is one line of a table

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jair_kernels._fusion_samples import FUSION_OPS, arguments
from jair_kernels.testing import FusionCase

ATTENTION, RESAMPLE, GATED, LAYER = FUSION_OPS
COMPOSED = (RESAMPLE, GATED, LAYER)
WITH_PARAMS = (GATED, LAYER)
MAIN_NAMES = {ATTENTION: "q", RESAMPLE: "x", GATED: "t", LAYER: "x"}
B, L, N, H, H_KV, HEAD, D, D_KV, M = 2, 3, 7, 4, 2, 4, 16, 10, 5
KV = H_KV * HEAD
FLOATS = "float32, bfloat16, float16, float64"
LIKE = "like the main input"


def zeros(*sizes: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(sizes, dtype=dtype, device=device)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([zeros(5), zeros(7)])


def valid(op: str, **case: Any) -> dict[str, Any]:
    """Keyword arguments with every optional tensor present; gated fusion in the form that has all fields."""
    sizes = {"b": B, "l": L, "n": N, "d": HEAD, "h": H, "h_kv": H_KV, "hidden": M}
    sizes |= {} if op == LAYER else {"kv_width": D_KV}
    options = {"options": {"form": "flamingo"}} if op == GATED else {}
    sample = FusionCase(op, **{**sizes, **options, **case}).sample()
    return arguments(op, sample.tensors) | sample.options


def changed(named: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """With another value of an argument, of a field (params.wq) or of an entry (x_norm[0])."""
    if name.startswith("params."):
        return named | {"params": named["params"]._replace(**{name[7:]: value})}
    if name.endswith("]"):
        pair = list(named[name[:-3]])
        pair[int(name[-2])] = value
        return named | {name[:-3]: tuple(pair)}
    return named | {name: value}


# (ops, argument, bad value, error, message after "<argument>: "); values are made when the case runs.
Case = tuple[tuple[str, ...], str, Callable[[], Any], type[Exception], str]

MAIN: list[Case] = [
    ((ATTENTION,), "q", lambda: zeros(B, L, HEAD), ValueError, "expected 4 dimensions [B, h, L, d], got shape [2, 3, 4]"),
    ((ATTENTION,), "q", lambda: zeros(B, 1, H, L, HEAD), ValueError, "expected 4 dimensions [B, h, L, d], got shape [2, 1, 4, 3, 4]"),
    ((ATTENTION,), "q", lambda: zeros(B, 0, L, HEAD), ValueError, "expected h >= 1, got shape [2, 0, 3, 4]"),
    ((ATTENTION,), "q", lambda: zeros(B, H, 0, HEAD), ValueError, "expected L >= 1, got shape [2, 4, 0, 4]"),
    ((ATTENTION,), "q", lambda: zeros(B, H, L, 0), ValueError, "expected d >= 1, got shape [2, 4, 3, 0]"),
    ((ATTENTION,), "q", lambda: zeros(B, H, L, 257), ValueError, "expected a head width d of at most 256, got 257"),
    ((RESAMPLE,), "x", lambda: zeros(N, D_KV), ValueError, "expected 3 dimensions [B, N, D_kv], got shape [7, 10]"),
    ((RESAMPLE,), "x", lambda: zeros(B, 1, N, D_KV), ValueError, "expected 3 dimensions [B, N, D_kv], got shape [2, 1, 7, 10]"),
    ((RESAMPLE,), "x", lambda: zeros(B, 0, D_KV), ValueError, "expected N >= 1, got shape [2, 0, 10]"),
    ((RESAMPLE,), "x", lambda: zeros(B, N, 0), ValueError, "expected D_kv >= 1, got shape [2, 7, 0]"),
    ((GATED,), "t", lambda: zeros(L, D), ValueError, "expected 3 dimensions [B, L, D], got shape [3, 16]"),
    ((GATED,), "t", lambda: zeros(B, 0, D), ValueError, "expected L >= 1, got shape [2, 0, 16]"),
    ((GATED,), "t", lambda: zeros(B, L, 0), ValueError, "expected D >= 1, got shape [2, 3, 0]"),
    ((LAYER,), "x", lambda: zeros(), ValueError, "expected 3 dimensions [B, N, D], got shape []"),
    ((LAYER,), "x", lambda: zeros(B, 0, D), ValueError, "expected N >= 1, got shape [2, 0, 16]"),
    ((LAYER,), "x", lambda: zeros(B, N, 0), ValueError, "expected D >= 1, got shape [2, 7, 0]"),
]  # fmt: skip

# Of every op's main input.
KINDS_OF_MAIN: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: None, TypeError, "expected a tensor, got NoneType"),
    (lambda: [[1.0]], TypeError, "expected a tensor, got list"),
    (lambda: zeros(B, N, D).numpy(), TypeError, "expected a tensor, got ndarray"),
    (lambda: zeros(B, N, D, dtype=torch.int64), TypeError, f"expected dtype {FLOATS}, got int64"),
    (lambda: zeros(B, N, D, dtype=torch.bool), TypeError, f"expected dtype {FLOATS}, got bool"),
    (lambda: zeros(B, N, D, dtype=torch.complex64), TypeError, f"expected dtype {FLOATS}, got complex64"),
    (lambda: zeros(B, N, D).to_sparse(), ValueError, "expected a strided tensor, got layout sparse_coo"),
    (nested, ValueError, "expected a strided tensor, got layout nested"),
]

OPERANDS: list[Case] = [
    ((ATTENTION,), "k", lambda: zeros(B, N, HEAD), ValueError, "expected shape [B, h_kv, N, d] = [2, any, any, 4], got [2, 7, 4]"),
    ((ATTENTION,), "k", lambda: zeros(1, H_KV, N, HEAD), ValueError, "expected shape [B, h_kv, N, d] = [2, any, any, 4], got [1, 2, 7, 4]"),
    ((ATTENTION,), "k", lambda: zeros(B, H_KV, N, HEAD + 1), ValueError, "expected shape [B, h_kv, N, d] = [2, any, any, 4], got [2, 2, 7, 5]"),
    ((ATTENTION,), "k", lambda: zeros(B, H_KV, 0, HEAD), ValueError, "expected N >= 1, got shape [2, 2, 0, 4]"),
    ((ATTENTION,), "k", lambda: zeros(B, 0, N, HEAD), ValueError, "expected h_kv >= 1, got shape [2, 0, 7, 4]"),
    ((ATTENTION,), "k", lambda: zeros(B, 3, N, HEAD), ValueError, "expected a divisor of the heads of q = 4, got 3"),
    ((ATTENTION,), "k", lambda: zeros(B, 8, N, HEAD), ValueError, "expected a divisor of the heads of q = 4, got 8"),
    ((ATTENTION,), "v", lambda: zeros(B, H, N, HEAD), ValueError, "expected shape [B, h_kv, N, d] = [2, 2, 7, 4], got [2, 4, 7, 4]"),
    ((ATTENTION,), "v", lambda: zeros(B, H_KV, N + 1, HEAD), ValueError, "expected shape [B, h_kv, N, d] = [2, 2, 7, 4], got [2, 2, 8, 4]"),
    ((RESAMPLE,), "latents", lambda: zeros(D), ValueError, "expected shape [L, D] = [any, any] or [B, L, D] = [2, any, any], got [16]"),
    ((RESAMPLE,), "latents", lambda: zeros(B, 1, L, D), ValueError, "expected shape [L, D] = [any, any] or [B, L, D] = [2, any, any], got [2, 1, 3, 16]"),
    ((RESAMPLE,), "latents", lambda: zeros(B + 1, L, D), ValueError, "expected shape [B, L, D] = [2, any, any], got [3, 3, 16]"),
    ((RESAMPLE,), "latents", lambda: zeros(0, D), ValueError, "expected L >= 1, got shape [0, 16]"),
    ((RESAMPLE,), "latents", lambda: zeros(B, L, 0), ValueError, "expected D >= 1, got shape [2, 3, 0]"),
    ((RESAMPLE,), "wq", lambda: zeros(D, D + 1), ValueError, "expected shape [h_d, D] = [any, 16], got [16, 17]"),
    ((RESAMPLE,), "wq", lambda: zeros(0, D), ValueError, "expected h_d >= 1, got shape [0, 16]"),
    ((RESAMPLE,), "wq", lambda: zeros(4 * 257, D), ValueError, "expected a head width d of at most 256, got 257"),
    ((RESAMPLE,), "wk", lambda: zeros(KV, D), ValueError, "expected shape [h_kv_d, D_kv] = [8, 10], got [8, 16]"),
    ((RESAMPLE,), "wk", lambda: zeros(D, D_KV), ValueError, "expected shape [h_kv_d, D_kv] = [8, 10], got [16, 10]"),
    ((RESAMPLE,), "wv", lambda: zeros(D_KV, KV), ValueError, "expected shape [h_kv_d, D_kv] = [8, 10], got [10, 8]"),
    ((RESAMPLE,), "wo", lambda: zeros(D + 1, D), ValueError, "expected shape [D, h_d] = [16, 16], got [17, 16]"),
    ((RESAMPLE,), "bq", lambda: zeros(D, 1), ValueError, "expected shape [rows] = [16], got [16, 1]"),
    ((RESAMPLE,), "bk", lambda: zeros(D), ValueError, "expected shape [rows] = [8], got [16]"),
    ((RESAMPLE,), "bv", lambda: zeros(1), ValueError, "expected shape [rows] = [8], got [1]"),
    ((RESAMPLE,), "bo", lambda: zeros(D_KV), ValueError, "expected shape [rows] = [16], got [10]"),
    ((RESAMPLE,), "x_norm", lambda: zeros(D_KV), TypeError, "expected a pair (weight, bias or None) or None, got Tensor"),
    ((RESAMPLE,), "x_norm", lambda: [zeros(D_KV), None], TypeError, "expected a pair (weight, bias or None) or None, got list"),
    ((RESAMPLE,), "x_norm", lambda: (zeros(D_KV),), TypeError, "expected a pair (weight, bias or None) or None, got 1 entries"),
    ((RESAMPLE,), "latents_norm", lambda: torch.nn.LayerNorm(D), TypeError, "expected a pair (weight, bias or None) or None, got LayerNorm"),
    ((RESAMPLE,), "x_norm[0]", lambda: None, TypeError, "expected a tensor, got NoneType"),
    ((RESAMPLE,), "x_norm[0]", lambda: zeros(D), ValueError, "expected shape [D_kv] = [10], got [16]"),
    ((RESAMPLE,), "x_norm[1]", lambda: zeros(D), ValueError, "expected shape [D_kv] = [10], got [16]"),
    ((RESAMPLE,), "latents_norm[0]", lambda: zeros(D, dtype=torch.float64), TypeError, f"expected dtype float32 {LIKE}, got float64"),
    ((RESAMPLE,), "latents_norm[1]", lambda: zeros(D, device="meta"), ValueError, f"expected device cpu {LIKE}, got meta"),
    ((GATED,), "f", lambda: zeros(N, D_KV), ValueError, "expected shape [B, N, D_kv] = [2, any, any], got [7, 10]"),
    ((GATED,), "f", lambda: zeros(1, N, D_KV), ValueError, "expected shape [B, N, D_kv] = [2, any, any], got [1, 7, 10]"),
    ((GATED,), "f", lambda: zeros(B, 0, D_KV), ValueError, "expected N >= 1, got shape [2, 0, 10]"),
    ((GATED,), "f", lambda: zeros(B, N, 0), ValueError, "expected D_kv >= 1, got shape [2, 7, 0]"),
    ((GATED,), "params", lambda: None, TypeError, "expected a GatedFusionParams, got NoneType"),
    ((GATED,), "params", lambda: tuple(valid(GATED)["params"]), TypeError, "expected a GatedFusionParams, got tuple"),
    ((GATED,), "params", lambda: valid(LAYER)["params"], TypeError, "expected a GatedFusionParams, got TransformerLayerParams"),
    ((GATED,), "params", lambda: valid(GATED)["params"]._asdict(), TypeError, "expected a GatedFusionParams, got dict"),
    ((LAYER,), "params", lambda: None, TypeError, "expected a TransformerLayerParams, got NoneType"),
    ((LAYER,), "params", lambda: list(valid(LAYER)["params"]), TypeError, "expected a TransformerLayerParams, got list"),
    ((LAYER,), "params", lambda: valid(GATED)["params"], TypeError, "expected a TransformerLayerParams, got GatedFusionParams"),
    ((GATED,), "params.wq", lambda: zeros(4 * 257, D), ValueError, "expected a head width d of at most 256, got 257"),
    ((GATED,), "params.wk", lambda: zeros(3 * HEAD, D_KV), ValueError, "expected h_kv d rows, d = 4 and h_kv a divisor of num_heads = 4, got 12"),
    ((GATED,), "params.wk", lambda: zeros(KV + 1, D_KV), ValueError, "expected h_kv d rows, d = 4 and h_kv a divisor of num_heads = 4, got 9"),
    ((GATED,), "params.wk", lambda: zeros(8 * HEAD, D_KV), ValueError, "expected h_kv d rows, d = 4 and h_kv a divisor of num_heads = 4, got 32"),
    ((GATED,), "params.alpha", lambda: zeros(2), ValueError, "expected shape [1] or [D] = [16], got [2]"),
    ((GATED,), "params.alpha", lambda: zeros(), ValueError, "expected shape [1] or [D] = [16], got []"),
    ((GATED,), "params.beta", lambda: zeros(D_KV), ValueError, "expected shape [1] or [D] = [16], got [10]"),
    ((GATED,), "params.beta", lambda: zeros(1, D), ValueError, "expected shape [1] or [D] = [16], got [1, 16]"),
    ((GATED,), "params.alpha", lambda: zeros(1, dtype=torch.float64), TypeError, f"expected dtype float32 {LIKE}, got float64"),
    ((GATED,), "params.beta", lambda: zeros(D, device="meta"), ValueError, f"expected device cpu {LIKE}, got meta"),
]  # fmt: skip

OPTIONS: list[Case] = [
    (FUSION_OPS, "mask", lambda: [True], TypeError, "expected a bool tensor or None, got list"),
    (FUSION_OPS, "mask", lambda: zeros(B, N), TypeError, "expected dtype bool (True = keep), got float32"),
    (FUSION_OPS, "mask", lambda: zeros(B, N, dtype=torch.int64), TypeError, "expected dtype bool (True = keep), got int64"),
    (FUSION_OPS, "mask", lambda: zeros(B, N + 1, dtype=torch.bool), ValueError, "expected shape [B, N] = [2, 7], got [2, 8]"),
    (FUSION_OPS, "mask", lambda: zeros(1, N, dtype=torch.bool), ValueError, "expected shape [B, N] = [2, 7], got [1, 7]"),
    (FUSION_OPS, "mask", lambda: zeros(B, 1, L, N, dtype=torch.bool), ValueError, "expected shape [B, N] = [2, 7], got [2, 1, 3, 7]"),
    (FUSION_OPS, "mask", lambda: zeros(B, N, dtype=torch.bool, device="meta"), ValueError, f"expected device cpu {LIKE}, got meta"),
    (FUSION_OPS, "mask", lambda: zeros(B, N, dtype=torch.bool).to_sparse(), ValueError, "expected a strided tensor, got layout sparse_coo"),
    ((ATTENTION, GATED), "kv_range", lambda: (0, N), TypeError, "expected an integer tensor or None, got tuple"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(B, L, 2), TypeError, "expected dtype int32, int64, got float32"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(B, L, 2, dtype=torch.int16), TypeError, "expected dtype int32, int64, got int16"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(B, L, 2, dtype=torch.bool), TypeError, "expected dtype int32, int64, got bool"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(B, L, dtype=torch.int64), ValueError, "expected shape [B, L, 2] = [2, 3, 2], got [2, 3]"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(B, L, 3, dtype=torch.int64), ValueError, "expected shape [B, L, 2] = [2, 3, 2], got [2, 3, 3]"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(B, N, 2, dtype=torch.int32), ValueError, "expected shape [B, L, 2] = [2, 3, 2], got [2, 7, 2]"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(1, L, 2, dtype=torch.int32), ValueError, "expected shape [B, L, 2] = [2, 3, 2], got [1, 3, 2]"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(B, L, 2, dtype=torch.int64, device="meta"), ValueError, f"expected device cpu {LIKE}, got meta"),
    ((ATTENTION, GATED), "kv_range", lambda: zeros(B, L, 2, dtype=torch.int64).to_sparse(), ValueError, "expected a strided tensor, got layout sparse_coo"),
    ((ATTENTION,), "scale", lambda: 0.0, ValueError, "expected a finite number > 0, got 0.0"),
    ((ATTENTION,), "scale", lambda: float("nan"), ValueError, "expected a finite number > 0, got nan"),
    ((ATTENTION,), "scale", lambda: True, TypeError, "expected a number, got bool"),
    ((ATTENTION,), "scale", lambda: zeros(1), TypeError, "expected a number, got Tensor"),
    (COMPOSED, "num_heads", lambda: None, TypeError, "expected an int, got NoneType"),
    (COMPOSED, "num_heads", lambda: True, TypeError, "expected an int, got bool"),
    (COMPOSED, "num_heads", lambda: 4.0, TypeError, "expected an int, got float"),
    (COMPOSED, "num_heads", lambda: 0, ValueError, "expected at least 1, got 0"),
    (COMPOSED, "num_heads", lambda: -4, ValueError, "expected at least 1, got -4"),
    ((RESAMPLE,), "num_heads", lambda: 6, ValueError, "expected a divisor of the rows of wq = 16, got 6"),
    ((GATED,), "num_heads", lambda: 6, ValueError, "expected a divisor of the rows of params.wq = 16, got 6"),
    ((GATED,), "num_heads", lambda: 32, ValueError, "expected a divisor of the rows of params.wq = 16, got 32"),
    ((LAYER,), "num_heads", lambda: 5, ValueError, "expected a divisor of the width D = 16, got 5"),
    ((RESAMPLE,), "num_kv_heads", lambda: False, TypeError, "expected an int, got bool"),
    ((RESAMPLE,), "num_kv_heads", lambda: "2", TypeError, "expected an int, got str"),
    ((RESAMPLE,), "num_kv_heads", lambda: 0, ValueError, "expected at least 1, got 0"),
    ((RESAMPLE,), "num_kv_heads", lambda: 3, ValueError, "expected a divisor of num_heads = 4, got 3"),
    ((RESAMPLE,), "num_kv_heads", lambda: 8, ValueError, "expected a divisor of num_heads = 4, got 8"),
    ((RESAMPLE,), "attend_latents", lambda: 1, TypeError, "expected a bool, got int"),
    ((RESAMPLE,), "attend_latents", lambda: None, TypeError, "expected a bool, got NoneType"),
    ((RESAMPLE,), "attend_latents", lambda: True, ValueError, "expected latents as wide as the tokens, D = D_kv = 10, got D = 16"),
    ((RESAMPLE,), "method", lambda: "fast", ValueError, "expected 'auto' or 'projected' or 'absorbed', got 'fast'"),
    ((RESAMPLE,), "method", lambda: None, ValueError, "expected 'auto' or 'projected' or 'absorbed', got None"),
    ((RESAMPLE,), "method", lambda: ["auto"], ValueError, "expected 'auto' or 'projected' or 'absorbed', got ['auto']"),
    ((GATED,), "form", lambda: "Flamingo", ValueError, "expected 'jair' or 'flamingo', got 'Flamingo'"),
    ((GATED,), "form", lambda: None, ValueError, "expected 'jair' or 'flamingo', got None"),
    ((GATED,), "form", lambda: zeros(2).numpy(), ValueError, "expected 'jair' or 'flamingo', got array([0., 0.], dtype=float32)"),
    ((LAYER,), "causal", lambda: None, TypeError, "expected a bool, got NoneType"),
    ((LAYER,), "causal", lambda: 1, TypeError, "expected a bool, got int"),
    (COMPOSED, "eps", lambda: 0.0, ValueError, "expected a finite number > 0, got 0.0"),
    (COMPOSED, "eps", lambda: -1e-6, ValueError, "expected a finite number > 0, got -1e-06"),
    (COMPOSED, "eps", lambda: float("nan"), ValueError, "expected a finite number > 0, got nan"),
    (COMPOSED, "eps", lambda: float("inf"), ValueError, "expected a finite number > 0, got inf"),
    (COMPOSED, "eps", lambda: None, TypeError, "expected a number, got NoneType"),
    (COMPOSED, "eps", lambda: True, TypeError, "expected a number, got bool"),
    (WITH_PARAMS, "approximate", lambda: "erf", ValueError, "expected 'tanh' or 'none', got 'erf'"),
    (WITH_PARAMS, "approximate", lambda: None, ValueError, "expected 'tanh' or 'none', got None"),
    (WITH_PARAMS, "approximate", lambda: True, ValueError, "expected 'tanh' or 'none', got True"),
    (FUSION_OPS, "backend", lambda: "gpu", ValueError, "expected one of reference, cpu, triton, cuda, got 'gpu'"),
    (FUSION_OPS, "backend", lambda: "CPU", ValueError, "expected one of reference, cpu, triton, cuda, got 'CPU'"),
    (FUSION_OPS, "backend", lambda: 1, ValueError, "expected one of reference, cpu, triton, cuda, got 1"),
]  # fmt: skip
