"""fused_transformer_layer on the CPU against float64: all gradients, dtypes and instruction sets."""

from __future__ import annotations

import pytest
from cases import by_name

from jair_kernels.testing import FusionCase

OP = "fused_transformer_layer"
BIASES = ("bqkv", "bo", "b1", "b2")
NORMS = ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")


def case(n: int, **options) -> FusionCase:
    return FusionCase(OP, options.pop("b", 2), n, n, **options)


CAUSAL = {"causal": True}
CASES = [
    *(case(n, h=h) for n in (1, 7, 66) for h in (1, 3)),
    *(case(9, absent=absent) for absent in (BIASES, NORMS, NORMS[1::2], ("bo", "norm1_bias"))),
    *(case(9, b=3, mask=m, options=o) for m in ("some", "nan", "all") for o in ({}, CAUSAL)),
    *(case(n, options=CAUSAL) for n in (1, 20)),
    *(case(9, values=v) for v in ("shifted", "repeated")),
    *(case(9, layout=layout) for layout in ("transposed", "sliced", "expanded")),
    case(9, options={"approximate": "tanh", "eps": 0.1}),
    case(9, b=0),
]


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_accurate(case, target_dtype, expectation):
    expectation(case, target_dtype).check("cpu")
