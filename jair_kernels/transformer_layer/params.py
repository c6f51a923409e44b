"""The parameters of fused_transformer_layer."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class TransformerLayerParams(NamedTuple):
    """Parameters of one pre-LN layer; a norm whose weight is None is skipped, M is the MLP's hidden width."""

    norm1_weight: Tensor | None  # [D]
    norm1_bias: Tensor | None  # [D]
    wqkv: Tensor  # [3 D, D], rows q, k, v
    bqkv: Tensor | None  # [3 D]
    wo: Tensor  # [D, D]
    bo: Tensor | None  # [D]
    norm2_weight: Tensor | None  # [D]
    norm2_bias: Tensor | None  # [D]
    w1: Tensor  # [M, D]
    b1: Tensor | None  # [M]
    w2: Tensor  # [D, M]
    b2: Tensor | None  # [D]
