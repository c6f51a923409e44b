"""Masks: a masked token has no effect, in value or gradient, whatever it holds; nothing kept gives zeros."""

from __future__ import annotations

import pytest
import torch
from cases import by_name

from jair_kernels.testing import Case, Expectation, Sample, faults, run

OPS = ("fused_token_pool", "fused_tokenlearner")
OPTIONS = {
    "fused_token_pool": [
        {"weighting": w, "reduction": r} for w in ("softmax", "sigmoid") for r in ("sum", "mean")
    ],
    "fused_tokenlearner": [{}],
}
CASES = [
    Case(op, 3, n, 48, 5, h=20, mask=mask, options=options)
    for op in OPS
    for options in OPTIONS[op]
    for n in (1, 7, 197)
    for mask in ("some", "row", "nan", "all")
]
each_op = pytest.mark.parametrize("op", OPS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{by_name(case)}")
def test_accurate(case, target_dtype, expectation):
    expectation(case, target_dtype).check("cpu")


@each_op
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_content_of_masked_tokens_is_ignored(op, backend, dtype):
    clean = Case(op, 3, 40, 48, 5, mask="row").sample(dtype)
    dirty = Case(op, 3, 40, 48, 5, mask="nan").sample(dtype)
    assert not torch.equal(clean.tensors["x"], dirty.tensors["x"])
    ours, theirs = run(dirty, backend), run(clean, backend)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@each_op
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nothing_kept_gives_zeros(op, backend, dtype):
    for name, value in run(Case(op, 2, 40, 48, 5, mask="all").sample(dtype), backend).items():
        assert not value.any(), name


@each_op
def test_image_without_kept_tokens_among_others(op, target_dtype):
    sample = Case(op, 3, 40, 48, 5, mask="row").sample(target_dtype)
    result = run(sample, "cpu")
    assert not result["y"][0].any()
    assert result["y"][1:].any(dim=-1).all()
    assert not result["dx"][~sample.tensors["mask"]].any()


@each_op
def test_mask_equals_shorter_images(op, target_dtype):
    long = Case(op, 2, 23, 48, 5).sample(target_dtype)
    keep = torch.arange(23).expand(2, 23) < 16
    short = {name: t[:, :16] if name in ("x", "scores") else t for name, t in long.tensors.items()}
    masked = run(Sample(op, "masked", {**long.tensors, "mask": keep}, {}, long.dy), "cpu")
    trimmed = {name: t[:, :16] if name in ("dx", "dscores") else t for name, t in masked.items()}
    held = Expectation.of(Sample(op, "short", short, {}, long.dy))
    assert not faults(trimmed, held.eager, held.expected, held.allowed)
    assert not masked["dx"][:, 16:].any()


@pytest.mark.parametrize("layout", ["broadcast", "strided", "transposed"])
@each_op
def test_strides_of_the_mask(op, layout):
    plain = Case(op, 4, 9, 48, 5, mask="some").sample()
    mask = plain.tensors["mask"]
    if layout == "broadcast":
        mask = mask[:1].expand(4, 9)
    elif layout == "strided":
        mask = torch.stack([mask, ~mask], dim=-1).flatten(1)[:, ::2]
    else:
        mask = mask.t().contiguous().t()
    ours, theirs = (
        run(Sample(op, layout, {**plain.tensors, "mask": m}, {}, plain.dy), "cpu")
        for m in (mask, mask.contiguous())
    )
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
