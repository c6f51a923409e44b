"""Inputs of the tests as data: a `Case` says what is special, its `sample` holds the tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Sample:
    """One call: tensors by argument name (None = absent), further options, and the gradient arriving at y."""

    op: str
    name: str
    tensors: dict[str, Tensor | None]
    options: dict[str, Any]
    dy: Tensor

    def to(self, dtype: torch.dtype) -> Sample:
        """The same values in another dtype; a mask stays."""

        def cast(t: Tensor | None) -> Tensor | None:
            return t.to(dtype) if t is not None and t.is_floating_point() else t

        return replace(self, tensors={k: cast(t) for k, t in self.tensors.items()}, dy=self.dy.to(dtype))

    def with_options(self, **changes: Any) -> Sample:
        """The same tensors with other options."""
        return replace(self, options={**self.options, **changes})


@dataclass(frozen=True)
class Case:
    """A shape and what is special about it; `sample` makes the tensors.

    values: "normal"; "shifted" (mean/std = 100); "huge_score" (one weight takes all); "far_scores" (given
        scores, all near 1e4); "constant" (every second token is constant over D); "repeated" (all tokens of
        an image are equal).
    layout: "dense"; "transposed" (the strides of the last two axes swapped); "sliced" (every second element
        of a larger tensor along each axis); "expanded" (one image for the whole batch, stride 0).
    mask: None; "some" (random, each image keeps at least one token); "row" (as before, but image 0 keeps
        none); "all" (nothing is kept); "nan" (as "row", and the masked tokens hold NaN and infinity).
    absent: optional tensors that are None.
    """

    op: str
    b: int
    n: int
    d: int
    k: int
    h: int = 16
    values: str = "normal"
    layout: str = "dense"
    mask: str | None = None
    absent: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        hidden = "" if self.op == "fused_token_pool" else f"-H{self.h}"
        words = [self.values] * (self.values != "normal") + [self.layout] * (self.layout != "dense")
        words += [f"mask_{self.mask}"] * (self.mask is not None) + [f"no_{a}" for a in self.absent]
        words += [f"{key}={value}" for key, value in self.options.items()]
        return "-".join([f"B{self.b}-N{self.n}-D{self.d}{hidden}-K{self.k}", *words])

    def sample(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Sample:
        """The tensors of this case, the same at every call; drawn in float64, then rounded to dtype."""
        draw = _Draw(self)
        tensors = draw.tensors()
        dy_rows = self.n if self.op == "fused_tokenfuser" else self.k
        dy = draw.normal(self.b, dy_rows, self.d)
        mask = tensors.get("mask")
        made: dict[str, Tensor | None] = {
            name: None
            if t is None or name in self.absent
            else lay_out(t.to(dtype), self.layout if name == "x" or self.layout != "expanded" else "dense")
            for name, t in tensors.items()
            if name != "mask"
        }
        if mask is not None:
            made["mask"] = mask
        on_device = {name: t if t is None or device == "cpu" else t.to(device) for name, t in made.items()}
        return Sample(self.op, self.name, on_device, dict(self.options), dy.to(dtype).to(device))


class _Draw:
    """Random float64 values of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(case.n * 1009 + case.d * 31 + case.k)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def x(self) -> Tensor:
        c = self.case
        x = self.normal(c.b, c.n, c.d)
        if c.values == "shifted":
            x = x + 100
        elif c.values == "outlier":
            x[..., 0] = 100 + x[..., 0]
        elif c.values == "constant":
            x[:, ::2] = x[:, ::2, :1]
        elif c.values == "repeated":
            x = x[:, :1].expand(c.b, c.n, c.d).contiguous()
        return x[:1].expand(c.b, c.n, c.d) if c.layout == "expanded" and c.b else x

    def mask(self) -> Tensor:
        c = self.case
        keep = torch.rand(c.b, c.n, generator=self.generator) < 0.7
        keep[:, c.n // 2] = True
        if c.mask in ("row", "nan"):
            keep[:1] = False
        return keep & (c.mask != "all")

    def tensors(self) -> dict[str, Tensor]:
        c = self.case
        made = {"x": self.x()}
        if c.op == "fused_token_pool":
            made["scores"] = 2 * self.normal(c.b, c.n, c.k)
            if c.values == "huge_score":
                made["scores"][:, c.n // 2] += 3e4
            elif c.values == "far_scores":
                made["scores"] += 1e4
        else:
            if c.op == "fused_tokenfuser":
                made["tokens"] = self.normal(c.b, c.k, c.d)
            made["w1"] = self.normal(c.h, c.d) / c.d**0.5
            made["b1"] = self.normal(c.h) / 2
            made["w2"] = self.normal(c.k, c.h) * 2 / c.h**0.5
            made["b2"] = self.normal(c.k)
            made["norm_weight"] = 1 + self.normal(c.d) / 4
            made["norm_bias"] = self.normal(c.d) / 4
            if c.values == "huge_score":
                made["w2"][:1] *= 1e3
        if c.mask is not None:
            made["mask"] = self.mask()
        if c.mask == "nan":
            for name in ("x", "scores"):
                if name in made:
                    made[name][~made["mask"]] = float("nan")
                    made[name][~made["mask"], ..., 0] = float("inf")
        return made


def lay_out(t: Tensor, layout: str) -> Tensor:
    """The same values at other strides; "expanded": those of the first image for all."""
    if layout == "transposed" and t.ndim > 1:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced" and t.ndim > 1:
        wide = t.new_full([2 * size for size in t.shape], float("nan"))  # what lies between must not be read
        view = wide[tuple(slice(None, None, 2) for _ in t.shape)]
        return view.copy_(t)
    if layout == "expanded" and t.shape[0]:
        return t[:1].expand(t.shape)
    return t.contiguous()


def _small_cases(op: str) -> list[Case]:
    cases = [
        Case(op, 2, 7, 48, 8),
        Case(op, 1, 1, 16, 1),
        Case(op, 3, 20, 40, 3, h=24),
        Case(op, 0, 5, 32, 4),
    ]
    cases += [Case(op, 2, 9, 32, 4, layout=layout) for layout in ("transposed", "sliced", "expanded")]
    if op != "fused_tokenfuser":
        cases += [Case(op, 3, 9, 32, 4, mask=mask) for mask in ("some", "nan", "all")]
    if op == "fused_token_pool":
        choices = [("softmax", "mean"), ("sigmoid", "sum"), ("sigmoid", "mean")]
        options = [{"weighting": weighting, "reduction": reduction} for weighting, reduction in choices]
        return cases + [
            Case(op, 3, 9, 32, 4, mask=mask, options=o) for o in options for mask in (None, "row")
        ]
    cases.append(Case(op, 2, 9, 32, 4, options={"approximate": "none"}))
    cases.append(Case(op, 2, 9, 32, 4, options={"eps": 0.5}))
    return cases + [
        Case(op, 2, 9, 32, 4, absent=a) for a in (("b1", "b2"), ("norm_bias",), ("norm_weight", "norm_bias"))
    ]


def sample_inputs(op: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Sample]:
    """Small calls that use every argument of an op between them: for accuracy, opcheck, export and so on."""
    return [case.sample(dtype, device) for case in _small_cases(op)]
