"""gelu(h) over rows: a building block of layers, without a public function."""

from __future__ import annotations

from jair_kernels.gelu import op as op
