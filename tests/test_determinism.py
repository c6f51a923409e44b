"""The same bits at every run, whatever memory held before."""

from __future__ import annotations

import pytest
import torch
from cases import by_name

from jair_kernels.testing import Case, Sample, poisoned_empty, run

OPS = ("fused_token_pool", "fused_tokenlearner", "fused_tokenfuser")
CASES = [Case(op, b, n, 100, k, h=20) for op in OPS for b, n, k in ((1, 70, 3), (3, 197, 8), (2, 7, 20))]
CASES += [Case(op, 3, 70, 100, 5, h=20, mask="nan") for op in OPS[:2]]
CASES += [Case(OPS[0], 3, 70, 100, 5, options={"weighting": "sigmoid"})]


def case_id(case: Case) -> str:
    return f"{case.op}-{by_name(case)}"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_two_runs_are_equal(case, threads, target_dtype):
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (run(case.sample(target_dtype), "cpu") for _ in range(2))
    finally:
        torch.set_num_threads(previous)
    assert_same(first, second)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_poisoned_memory(case, target_dtype):
    """What a kernel does not write, or reads before it has written, would show as NaN."""
    sample = case.sample(target_dtype)
    clean = run(sample, "cpu")
    spoilt = {
        name: torch.full_like(t, torch.nan) if t.is_floating_point() else t
        for name, t in sample.tensors.items()
    }
    run(Sample(case.op, "nan", spoilt, sample.options, sample.dy), "cpu")  # fills the kernels' own scratch
    with poisoned_empty():
        assert torch.empty(3).isnan().all()
        assert torch.ops.aten.new_empty.default(sample.dy, [3]).isnan().all()
        poisoned = run(sample, "cpu")
    assert_same(poisoned, clean)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_inputs_are_left_alone(case, target_dtype):
    sample, again = case.sample(target_dtype), case.sample(target_dtype)
    run(sample, "cpu")
    for name, value in again.tensors.items():
        assert torch.equal(sample.tensors[name].nan_to_num(), value.nan_to_num()), name


def assert_same(ours, theirs):
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
