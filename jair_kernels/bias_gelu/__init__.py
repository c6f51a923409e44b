"""gelu(h + bias) over rows: a building block of layers, without a public function."""

from __future__ import annotations

from jair_kernels.bias_gelu import op as op
