"""What surrounds the loops of Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def before_copies():
    """Before a loop whose loads are copied ahead into shared memory. Triton gives these copies memory that an
    earlier exchange between threads has used, and 3.6 puts no barrier before the first of them: a fast warp
    would overwrite what a slow one still reads.
    """
    tl.debug_barrier()
