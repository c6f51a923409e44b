"""Inputs of the fusion ops as data: a `FusionCase` says what is special, its `sample` holds the tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from jair_kernels._samples import Sample, lay_out
from jair_kernels.gated_fusion.params import GatedFusionParams
from jair_kernels.transformer_layer.params import TransformerLayerParams

Tensor = torch.Tensor

FUSION_OPS = (
    "fused_cross_attention",
    "fused_latent_resample",
    "fused_gated_fusion",
    "fused_transformer_layer",
)
_PARAMS: dict[str, Any] = {
    "fused_gated_fusion": GatedFusionParams,
    "fused_transformer_layer": TransformerLayerParams,
}
# Parameters that a gated fusion has not whose f [B,N,2 h_kv d] holds keys and values.
PROJECTING = ("norm_f_weight", "norm_f_bias", "wk", "bk", "wv", "bv")
_ACTIVATIONS = ("q", "k", "v", "x", "t", "f", "latents")


def arguments(op: str, tensors: dict[str, Tensor | None]) -> dict[str, Any]:
    """Keyword arguments of a call: named tensors, of which some are fields of `params` or pairs of a norm."""
    named: dict[str, Any] = dict(tensors)
    if op in _PARAMS:
        fields = _PARAMS[op]._fields
        params = _PARAMS[op](**{name: named.pop(name, None) for name in fields})
        return named | {"params": params}
    if op == "fused_latent_resample":
        for norm in ("x_norm", "latents_norm"):
            weight, bias = named.pop(f"{norm}_weight", None), named.pop(f"{norm}_bias", None)
            named[norm] = None if weight is None else (weight, bias)
    return named


@dataclass(frozen=True)
class FusionCase:
    """A shape and what is special about it.

    l, n: queries (latents, tokens of t) and keys (tokens of x, of f); a transformer layer has n tokens.
    d: head width; D of the composed ops is h d, that of keys `kv_width` or the same.
    values: "normal"; "shifted" (tokens with mean/std = 100); "huge_score" (one key takes all); "repeated"
        (equal keys).
    layout: as in `jair_kernels._samples.Case`, of the activations.
    mask: None; "some"; "row" (sample 0 keeps none); "all" (nothing is kept); "nan" (as "row", and masked
        tokens hold NaN and infinity).
    ranges: None; "media" (queries attend later and later keys, the first none); "wild" (also reversed and
        out of bounds, int32).
    absent: tensors that are None.
    """

    op: str
    b: int
    l: int
    n: int
    d: int = 16
    h: int = 2
    h_kv: int | None = None
    hidden: int = 40
    kv_width: int | None = None
    values: str = "normal"
    layout: str = "dense"
    mask: str | None = None
    ranges: str | None = None
    shared: bool = True
    gates: str = "scalar"
    absent: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def name(self) -> str:
        words = [f"B{self.b}-L{self.l}-N{self.n}-d{self.d}-h{self.h}"]
        words += [f"kv{self.h_kv}"] * (self.h_kv is not None) + [f"Dkv{self.kv_width}"] * (
            self.kv_width is not None
        )
        words += [self.values] * (self.values != "normal") + [self.layout] * (self.layout != "dense")
        words += [f"mask_{self.mask}"] * (self.mask is not None) + [f"range_{self.ranges}"] * (
            self.ranges is not None
        )
        words += ["per_sample"] * (not self.shared) + [f"gates_{self.gates}"] * (self.gates != "scalar")
        words += [f"no_{name}" for name in self.absent] + [
            f"{key}={value}" for key, value in self.options.items()
        ]
        return "-".join(words)

    @property
    def width(self) -> int:
        return self.h * self.d

    @property
    def heads_of_keys(self) -> int:
        return self.h if self.h_kv is None else self.h_kv

    def sample(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Sample:
        """The tensors of this case, the same at every call; drawn in float64, then rounded to dtype."""
        draw = _Draw(self)
        tensors: dict[str, Tensor | None] = {}
        for name, t in draw.tensors().items():
            t = t.to(dtype)
            absent = name in self.absent
            tensors[name] = None if absent else lay_out(t, self.layout) if name in _ACTIVATIONS else t
        tensors |= draw.masks()
        dy = draw.normal(*draw.shape_of_y).to(dtype)
        options = dict(self.options) | draw.options()
        on_device = {name: t if t is None else t.to(device) for name, t in tensors.items()}
        return Sample(self.op, self.name, on_device, options, dy.to(device))


class _Draw:
    """Random float64 values of a case."""

    def __init__(self, case: FusionCase) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(case.n * 1009 + case.l * 31 + case.d + case.seed)
        self.keep = self._keep()

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self.normal(rows, columns, scale=columns**-0.5)

    def _keep(self) -> Tensor | None:
        c = self.case
        if c.mask is None:
            return None
        keep = torch.rand(c.b, c.n, generator=self.generator) < 0.7
        keep[:, c.n // 2] = True
        if c.mask in ("row", "nan"):
            keep[:1] = False
        return keep & (c.mask != "all")

    def tokens(self, n: int, width: int, keys: bool) -> Tensor:
        c = self.case
        x = self.normal(c.b, n, width)
        if c.values == "shifted":
            x = x + 100
        if keys and c.values == "repeated":
            x = x[:, :1].expand(c.b, n, width).contiguous()
        if keys and c.mask == "nan" and self.keep is not None:
            x[~self.keep] = float("nan")
            x[~self.keep, ..., 0] = float("inf")
        return x

    def tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = getattr(self, self.case.op.removeprefix("fused_"))()
        return tensors

    @property
    def shape_of_y(self) -> tuple[int, ...]:
        c = self.case
        if c.op == "fused_cross_attention":
            return c.b, c.h, c.l, c.d
        return c.b, c.n if c.op == "fused_transformer_layer" else c.l, c.width

    def options(self) -> dict[str, Any]:
        c = self.case
        if c.op == "fused_cross_attention":
            return {}
        return {"num_heads": c.h} | ({"num_kv_heads": c.h_kv} if c.op == "fused_latent_resample" else {})

    def masks(self) -> dict[str, Tensor | None]:
        c = self.case
        made: dict[str, Tensor | None] = {} if self.keep is None else {"mask": self.keep}
        if c.ranges == "media":  # query l attends the second half of the keys before its place
            end = torch.arange(c.l) * (c.n + 1) // c.l
            made["kv_range"] = torch.stack([end // 2, end], -1).expand(c.b, c.l, 2)
        elif c.ranges == "wild":
            bounds = torch.randint(-3, c.n + 4, (c.b, c.l, 2), generator=self.generator)
            made["kv_range"] = bounds.to(torch.int32)
        return made

    def cross_attention(self) -> dict[str, Tensor]:
        c = self.case
        q = self.normal(c.b, c.h, c.l, c.d)
        k, v = (
            self.tokens(c.n, c.heads_of_keys * c.d, keys=True).unflatten(-1, (-1, c.d)).transpose(1, 2)
            for _ in "kv"
        )
        if c.values == "huge_score":
            q = q.abs()
            k[:, :, c.n // 2] += 300
        return {"q": q, "k": k, "v": v}

    def norm(self, name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}_weight": 1 + self.normal(width) / 4, f"{name}_bias": self.normal(width) / 4}

    def attention(self, width: int, kv_width: int) -> dict[str, Tensor]:
        c = self.case
        inner, kv_inner = c.h * c.d, c.heads_of_keys * c.d
        made = {"wq": self.matrix(inner, width), "wk": self.matrix(kv_inner, kv_width)}
        made |= {"wv": self.matrix(kv_inner, kv_width), "wo": self.matrix(width, inner)}
        if c.values == "huge_score":
            made["wq"] *= 100
        sizes = {"bq": inner, "bk": kv_inner, "bv": kv_inner, "bo": width}
        return made | {name: self.normal(size) / 2 for name, size in sizes.items()}

    def mlp(self, width: int) -> dict[str, Tensor]:
        hidden = self.case.hidden
        made = {"w1": self.matrix(hidden, width), "b1": self.normal(hidden) / 2}
        return made | {"w2": self.matrix(width, hidden), "b2": self.normal(width) / 2}

    def latent_resample(self) -> dict[str, Tensor]:
        c = self.case
        kv_width = c.width if c.kv_width is None else c.kv_width
        latents = self.normal(c.l, c.width) if c.shared else self.normal(c.b, c.l, c.width)
        made = {"x": self.tokens(c.n, kv_width, keys=True), "latents": latents}
        norms = self.norm("x_norm", kv_width) | self.norm("latents_norm", c.width)
        return made | self.attention(c.width, kv_width) | norms

    def gated_fusion(self) -> dict[str, Tensor]:
        c = self.case
        kv_width = c.width if c.kv_width is None else c.kv_width
        made = {"t": self.tokens(c.l, c.width, keys=False), "f": self.tokens(c.n, kv_width, keys=True)}
        made |= self.norm("norm_t", c.width) | self.norm("norm_f", kv_width)
        made |= self.attention(c.width, kv_width) | self.mlp(c.width)
        if c.options.get("form") == "flamingo":
            made |= self.norm("norm_mlp", c.width)
        size = c.width if c.gates == "channels" else 1
        for name in ("alpha", "beta"):
            made[name] = torch.zeros(size, dtype=torch.float64) if c.gates == "zero" else self.normal(size)
        return made

    def transformer_layer(self) -> dict[str, Tensor]:
        c = self.case
        made = {"x": self.tokens(c.n, c.width, keys=True)} | self.norm("norm1", c.width)
        made |= {"wqkv": self.matrix(3 * c.width, c.width), "bqkv": self.normal(3 * c.width) / 2}
        made |= {"wo": self.matrix(c.width, c.width), "bo": self.normal(c.width) / 2}
        return made | self.norm("norm2", c.width) | self.mlp(c.width)
