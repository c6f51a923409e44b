"""The parameters of fused_gated_fusion."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class GatedFusionParams(NamedTuple):
    """Parameters of one gated fusion block; a norm whose weight is None is skipped, a gate that is None is 1.

    d is the head width, h and h_kv the numbers of heads of queries and of keys, M the MLP's hidden width.
    Without wk and wv (both None, and so norm_f_*, bk and bv) f holds keys and values already.
    """

    norm_t_weight: Tensor | None  # [D]
    norm_t_bias: Tensor | None  # [D]
    norm_f_weight: Tensor | None  # [D_kv]
    norm_f_bias: Tensor | None  # [D_kv]
    wq: Tensor  # [h d, D]
    bq: Tensor | None  # [h d]
    wk: Tensor | None  # [h_kv d, D_kv]
    bk: Tensor | None  # [h_kv d]
    wv: Tensor | None  # [h_kv d, D_kv]
    bv: Tensor | None  # [h_kv d]
    wo: Tensor  # [D, h d]
    bo: Tensor | None  # [D]
    norm_mlp_weight: Tensor | None  # [D], form "flamingo" alone
    norm_mlp_bias: Tensor | None  # [D]
    w1: Tensor  # [M, D]
    b1: Tensor | None  # [M]
    w2: Tensor  # [D, M]
    b2: Tensor | None  # [D]
    alpha: Tensor | None  # [1] or [D]
    beta: Tensor | None  # [1] or [D]
