"""The gradients of a gated product's weight, bias and gate: a building block of layers on a GPU, without a
public function.
"""

from __future__ import annotations

from jair_kernels.gate import op as op
