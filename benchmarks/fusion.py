"""The attention and fusion ops as the benchmarks see them: cases, tensors, peers, counts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

import jair_kernels
from jair_kernels._fusion_samples import FusionCase as Draw
from jair_kernels._fusion_samples import arguments
from jair_kernels.cross_attention import cost as attention_cost
from jair_kernels.cross_attention.reference import allowed_keys
from jair_kernels.gated_fusion import reference as gated_reference
from jair_kernels.latent_resample import cost as resample_cost
from jair_kernels.latent_resample import reference as resample_reference
from jair_kernels.transformer_layer import reference as layer_reference

Tensor = torch.Tensor

OPS = ("fused_cross_attention", "fused_latent_resample", "fused_gated_fusion", "fused_transformer_layer")
COMPOSED = {
    "fused_latent_resample": resample_reference,
    "fused_gated_fusion": gated_reference,
    "fused_transformer_layer": layer_reference,
}


@dataclass(frozen=True)
class FusionCase:
    """Sizes: B samples, L queries, N keys, h heads (h_kv of the keys) of width d, hidden width M of an
    MLP; `masked`: with a key-padding mask.
    """

    op: str
    b: int
    l: int
    n: int
    h: int
    d: int
    h_kv: int | None = None
    hidden: int = 0
    method: str = ""
    masked: bool = False

    def __str__(self) -> str:
        heads = f"{self.h}" if self.h_kv is None else f"{self.h}({self.h_kv})"
        words = [f"{self.b}x{heads},{self.l}x{self.n},d{self.d}"]
        words += [f"m{self.hidden}"] * (self.hidden > 0) + [self.method] * bool(self.method)
        words += ["masked"] * self.masked
        return ",".join(words)

    @property
    def width(self) -> int:
        return self.h * self.d

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments beside tensors."""
        if self.op == "fused_cross_attention":
            return {}
        return {"num_heads": self.h} | ({"method": self.method} if self.method else {})

    def tensors(self, dtype: torch.dtype, device: str, seed: int) -> dict[str, Tensor]:
        """All tensors of a call by name, and dy."""
        tokens = self.n if self.op == "fused_transformer_layer" else self.l
        sizes = (self.b, tokens, self.n, self.d, self.h, self.h_kv, self.hidden or 1)
        draw = Draw(self.op, *sizes, seed=seed, mask="some" if self.masked else None)
        sample = draw.sample(dtype, device)
        return {name: t for name, t in sample.tensors.items() if t is not None} | {"dy": sample.dy}

    def flops(self) -> tuple[int, int]:
        """Forward and backward; products alone, the backward as twice the forward."""
        attention = attention_cost.forward_flops(self.b, self.h, self.l, self.n, self.d)
        rows, width = self.b * self.l, self.width
        mlp = 4 * rows * width * self.hidden
        if self.op == "fused_cross_attention":
            forward = attention
        elif self.op == "fused_latent_resample":
            h_kv = self.h_kv or self.h
            sizes = resample_cost.Sizes(
                self.b, self.n, self.n, self.l, True, width, width, self.h, h_kv, self.d
            )
            method = resample_cost.choose(self.method or "auto", sizes)
            forward = getattr(resample_cost, f"{method}_flops")(sizes)
        elif self.op == "fused_gated_fusion":
            forward = attention + 4 * width * width * (rows + self.b * self.n) + mlp
        else:
            forward = attention + 8 * rows * width * width + mlp
        return forward, 2 * forward

    def bytes(self, itemsize: int) -> tuple[int, int]:
        """The least that crosses memory: inputs and parameters read and y written; for the backward twice
        that.
        """
        keys = self.b * self.n * (self.h_kv or self.h) * self.d
        rows = self.b * self.l * self.width
        square = self.width**2
        count = {
            "fused_cross_attention": 2 * rows + 2 * keys,
            "fused_latent_resample": self.b * self.n * self.width + rows + 4 * square,
            "fused_gated_fusion": 3 * rows + 4 * square + 2 * self.width * self.hidden,
            "fused_transformer_layer": 2 * rows + 4 * square + 2 * self.width * self.hidden,
        }[self.op]
        return itemsize * count, 2 * itemsize * count


_Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], Tensor]


def _with_arguments_of_ours(attend: _Attend) -> Callable[..., Tensor]:
    """An attention that takes fused_cross_attention's arguments, by one that takes (q, k, v, allowed, scale),
    allowed [B,1,L or 1,N] or None.
    """

    @functools.wraps(attend)
    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        kv_range: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        allowed = allowed_keys(mask, kv_range, k.shape[2])
        return attend(q, k, v, None if allowed is None else allowed.unsqueeze(1), scale)

    return run


@_with_arguments_of_ours
def attention_by_sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float | None) -> Tensor:
    """PyTorch's own attention."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale, enable_gqa=grouped)


@_with_arguments_of_ours
def attention_by_softmax(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float | None
) -> Tensor:
    """Attention as a model has it: matmul, softmax, matmul, masked keys at -inf. Unlike the definition of
    fused_cross_attention it looks for no NaN in keys that are not attended.
    """
    scores = (q * (q.shape[3] ** -0.5 if scale is None else scale)) @ k.mT
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


def attention_by_flex(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """fused_cross_attention without ranges by PyTorch's FlexAttention, which is meant to be compiled."""
    grouped = q.shape[1] != k.shape[1]

    def kept(score: Tensor, b: Tensor, h: Tensor, l: Tensor, n: Tensor) -> Tensor:
        assert mask is not None
        return torch.where(mask[b, n], score, -torch.inf)

    by = None if mask is None else kept
    y: Tensor = flex_attention(q, k, v, score_mod=by, scale=scale, enable_gqa=grouped)
    return y


class SdpaKind(TorchDispatchMode):
    """Within the block, which kernel PyTorch's own attention runs: "flash", "efficient" or "cudnn", several
    joined by "+"; "math" where it runs none of them, but products and a softmax.
    """

    _PREFIX = "_scaled_dot_product_"

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(self._PREFIX):
            self._seen.add(name.removeprefix(self._PREFIX).split("_")[0])
        return func(*args, **(kwargs or {}))

    def __str__(self) -> str:
        return "+".join(sorted(self._seen)) or "math"


@contextmanager
def sdpa_inside(op: str) -> Iterator[None]:
    """Within the block the op's definition has PyTorch's own attention inside."""
    with patch.object(COMPOSED[op], "cross_attention", attention_by_sdpa):
        yield


def peer(op: str, kind: str, prepare: Callable[[Any], Any] = lambda plain: plain) -> Callable[..., Tensor]:
    """The plain expression with attention as matmul and softmax ("eager") or as PyTorch's own ("sdpa"); of
    attention alone also FlexAttention ("flex"). `prepare`, say torch.compile, gets what is called inside.
    """
    reference: Callable[..., Tensor] = getattr(jair_kernels.reference, op.removeprefix("fused_"))
    if op == "fused_cross_attention" and kind != "eager":
        plain: Callable[..., Tensor] = prepare(attention_by_flex if kind == "flex" else attention_by_sdpa)
        return plain
    plain = prepare(reference)
    if kind == "eager":
        return plain

    def run(**named: Any) -> Tensor:
        with sdpa_inside(op):
            return plain(**named)

    return run


def packed(op: str, case: FusionCase, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function over tensors by flat names."""

    def run(**tensors: Tensor) -> Tensor:
        return function(**arguments(op, dict(tensors)), **case.options)

    return run
