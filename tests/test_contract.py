"""The error contract itself: it accepts what plain PyTorch computes and rejects results that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from jair_kernels.testing import Case, Expectation, FusionCase, faults, run, run_float64

CASES = [
    Case("fused_token_pool", 2, 33, 48, 5),
    Case("fused_tokenlearner", 2, 33, 48, 5, mask="some"),
    Case("fused_tokenfuser", 2, 33, 48, 5),
]
FUSION_CASES = [
    FusionCase("fused_cross_attention", 2, 7, 33, mask="some"),
    FusionCase("fused_latent_resample", 2, 7, 33, options={"method": "absorbed"}),
    FusionCase("fused_gated_fusion", 2, 7, 33),
    FusionCase("fused_transformer_layer", 2, 33, 33),
]
IDS = [case.op for case in CASES]
# What must not pass, of any output; the second number is the dtype's room for rounding.
SCALE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def one_element_off(t: torch.Tensor) -> torch.Tensor:
    wrong = t.clone()
    wrong.view(-1)[wrong.abs().argmax()] *= 0.5
    return wrong


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "zero": torch.zeros_like,
    "negated": torch.neg,
    "shifted by one": lambda t: t.roll(1, 0) if t.ndim == 1 else t.roll(1, 1),
    "one element off": one_element_off,
    "not a number": lambda t: torch.full_like(t, torch.nan),
    "wrong dtype": torch.Tensor.double,
}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def found(expectation: Expectation, **changed: torch.Tensor) -> list[str]:
    results = {**expectation.eager, **changed}
    return faults(results, expectation.eager, expectation.expected, expectation.allowed)


@pytest.mark.parametrize("case", CASES + FUSION_CASES, ids=lambda case: case.op)
def test_accepts_plain_pytorch_and_rejects_what_is_wrong(case: Case | FusionCase, dtype: torch.dtype) -> None:
    expectation = Expectation.of(case.sample(dtype))
    assert found(expectation) == []
    for name, value in expectation.eager.items():
        if not expectation.expected[name].abs().max() > 1e-6:  # db2 of a softmax: 0, whose zero is right
            continue
        for what, spoil in {**WRONG, "scaled": lambda t: t * (1 + SCALE[dtype])}.items():
            wrong = spoil(value)
            cancels = (
                name in ("dalpha", "dbeta") and what == "scaled"
            )  # a sum over all tokens, with their room
            if cancels or torch.equal(wrong, value):  # one number, shifted
                continue
            lines = found(expectation, **{name: wrong})
            assert lines, f"{name} {what} passed"
            assert all(line.startswith(f"{name}:") for line in lines)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_float64_reference_is_the_definition(case: Case) -> None:
    sample = case.sample(torch.float64)
    definition, exact = run(sample, "reference"), run_float64(sample)
    assert definition.keys() == exact.keys()
    for name, value in definition.items():
        torch.testing.assert_close(value, exact[name], rtol=1e-10, atol=1e-11)
