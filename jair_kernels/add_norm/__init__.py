"""Residual sum and LayerNorm in one pass over rows: a building block of layers, without a public function."""

from __future__ import annotations

from jair_kernels.add_norm import op as op
