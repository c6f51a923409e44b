"""fused_latent_resample on the CPU against float64, in both forms: gradients, dtypes, instruction sets."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cases import by_name

from jair_kernels.latent_resample import cost
from jair_kernels.testing import FusionCase, run

OP = "fused_latent_resample"
METHODS = [{"method": method} for method in ("projected", "absorbed")]
ATTENDING = {"attend_latents": True}
BIASES = ("bq", "bk", "bv", "bo")
NORMS = ("x_norm_weight", "x_norm_bias", "latents_norm_weight", "latents_norm_bias")
SHAPES = [
    FusionCase(OP, 2, l, n, 16, h=3, kv_width=kv, shared=shared, options=o)
    for (l, n, kv), shared, o in product(((1, 1, None), (7, 20, 40), (33, 9, None)), (True, False), METHODS)
]
GROUPED = [FusionCase(OP, 2, 5, 9, h=4, h_kv=h_kv, options=o) for h_kv, o in product((1, 2), METHODS)]
APPENDED = [
    FusionCase(OP, 3, 5, 9, h=4, h_kv=2, shared=shared, mask=m, absent=absent, options=o | ATTENDING)
    for shared, m, absent, o in product((True, False), (None, "nan"), ((), NORMS), METHODS)
]
ABSENT = [
    FusionCase(OP, 2, 5, 9, absent=absent, options=o)
    for absent, o in product((BIASES, NORMS, NORMS[1::2], NORMS[:2], ("bv",)), METHODS)
]
MASKS = [FusionCase(OP, 3, 5, 9, mask=m, options=o) for m, o in product(("some", "nan", "all"), METHODS)]
VALUES = [FusionCase(OP, 2, 5, 9, values=v, options=o) for v, o in product(("shifted", "repeated"), METHODS)]
LAYOUTS = [
    FusionCase(OP, 2, 5, 9, layout=layout, shared=False, options=o)
    for layout, o in product(("transposed", "sliced", "expanded"), METHODS)
]
OTHERS = [
    FusionCase(OP, 2, 5, 9, options=o | extra)
    for o, extra in product(METHODS, ({"eps": 0.1}, {"attend_latents": True}))
]
LONG = [FusionCase(OP, 1, 16, 5000, 32, h=2, options=o) for o in METHODS]
EMPTY = [FusionCase(OP, 0, 5, 9, shared=shared, options=o) for shared, o in product((True, False), METHODS)]
CASES = SHAPES + GROUPED + APPENDED + ABSENT + MASKS + VALUES + LAYOUTS + OTHERS + LONG + EMPTY


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_accurate(case, target_dtype, expectation):
    expectation(case, target_dtype).check("cpu")


@pytest.mark.parametrize("case", [c for c in CASES if c.options["method"] == "absorbed"], ids=by_name)
def test_both_forms_agree(case):
    absorbed = case.sample(torch.float64)
    projected = absorbed.with_options(method="projected")
    ours, theirs = run(absorbed, "cpu"), run(projected, "cpu")
    for name, value in theirs.items():
        size = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        assert torch.allclose(ours[name], value, rtol=1e-9, atol=1e-11 * size), name


@pytest.mark.parametrize("l", [1, 16, 58, 59, 60, 64, 128])
def test_auto_takes_the_form_with_fewer_operations(l):
    sizes = cost.Sizes(8, 196, 196, l, True, 768, 768, 12, 12, 64)
    # L < D / ((h - 1) + D / (2 N)) for queries counted with every sample
    assert cost.choose("auto", sizes) == ("absorbed" if l < 768 / (11 + 768 / 392) else "projected")
    assert cost.choose("projected", sizes) == "projected"


@pytest.mark.parametrize("itemsize", [None, 2, 4])
def test_one_form_for_any_length_is_that_of_many_keys(itemsize):
    for l in (1, 16, 34, 53, 64, 128):
        few, many = (cost.Sizes(8, n, n, l, True, 768, 768, 12, 12, 64) for n in (2, 1_000_000))
        expected = cost.choose("auto", many, itemsize)
        assert all(cost.choose("auto", s, itemsize, any_length=True) == expected for s in (few, many))


@pytest.mark.parametrize(("itemsize", "most"), [(2, 34), (4, 53)])
def test_auto_counts_bytes_on_a_gpu(itemsize, most):
    """Scores of every head and pooled keys cost more there than their operations tell: fewer latents pay."""
    for l in (1, 16, most, most + 1, 64, 128):
        sizes = cost.Sizes(256, 196, 196, l, True, 768, 768, 12, 12, 64)
        assert cost.choose("auto", sizes, itemsize) == ("absorbed" if l <= most else "projected")
        assert cost.choose("projected", sizes, itemsize) == "projected"
