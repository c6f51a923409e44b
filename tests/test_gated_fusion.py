"""fused_gated_fusion on the CPU against float64: all gradients, dtypes and instruction sets."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cases import by_name

from jair_kernels._fusion_samples import PROJECTING
from jair_kernels.testing import FusionCase, run

OP = "fused_gated_fusion"
FORMS = [{"form": form} for form in ("jair", "flamingo")]
BIASES = ("bq", "bk", "bv", "bo", "b1", "b2")
NORMS = ("norm_t_weight", "norm_t_bias", "norm_f_weight", "norm_f_bias", "norm_mlp_weight", "norm_mlp_bias")
SHIFTS = ("norm_t_bias", "norm_f_bias", "norm_mlp_bias")
SHAPES = [
    FusionCase(OP, 2, l, n, 16, h=3, kv_width=kv, options=o) for (l, n, kv), o in
    product(((1, 1, None), (7, 20, 40), (33, 9, None)), FORMS)
]  # fmt: skip
GATES = [FusionCase(OP, 2, 5, 9, gates=g, options=o) for g, o in product(("channels", "zero"), FORMS)]
ABSENT = [
    FusionCase(OP, 2, 5, 9, absent=absent, options=o)
    for absent, o in product((BIASES, NORMS, SHIFTS, ("alpha", "beta"), ("bo", "b2")), FORMS)
]
MASKS = [
    FusionCase(OP, 3, 5, 9, h=4, h_kv=2, mask=m, ranges=r, options=o)
    for (m, r), o in product((("some", None), ("nan", "wild"), ("all", None), (None, "media")), FORMS)
]
VALUES = [
    FusionCase(OP, 2, 33, 20, values=v, options=o) for v, o in product(("shifted", "huge_score"), FORMS)
]
LAYOUTS = [FusionCase(OP, 2, 5, 9, layout=layout) for layout in ("transposed", "sliced", "expanded")]
OPTIONS = [
    FusionCase(OP, 2, 5, 9, options={"approximate": "tanh", "eps": 0.1}),
    FusionCase(OP, 0, 5, 9),
    FusionCase(OP, 0, 5, 9, kv_width=64, absent=PROJECTING),
]
GIVEN = [
    FusionCase(OP, 3, 5, n, h=4, h_kv=h_kv, kv_width=32 * h_kv, absent=PROJECTING, options=o, **special)
    for (n, h_kv, special), o in product(
        (
            (20, 4, {}),
            (9, 2, {"mask": "nan", "ranges": "wild"}),
            (1, 1, {"mask": "all"}),
            (9, 1, {"layout": "sliced"}),
            (9, 2, {"layout": "transposed"}),
        ),
        FORMS,
    )
]
CASES = SHAPES + GATES + ABSENT + MASKS + VALUES + LAYOUTS + OPTIONS + GIVEN


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_accurate(case, target_dtype, expectation):
    expectation(case, target_dtype).check("cpu")


@pytest.mark.parametrize("options", FORMS, ids=lambda o: o["form"])
def test_gates_at_zero_pass_the_residual_and_still_learn(options, target_dtype):
    sample = FusionCase(OP, 2, 5, 9, gates="zero", options=options, absent=NORMS[:2]).sample(target_dtype)
    result = run(sample, "cpu")
    assert torch.equal(result["y"], sample.tensors["t"])
    assert result["dalpha"].abs() > 0
    assert result["dbeta"].abs() > 0
    assert not result["dwo"].any()
