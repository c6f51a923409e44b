"""Every op and GPU backend on a few small inputs, forward and backward: what compute-sanitizer runs.

Accuracy is tested in test_device.py; here only the accesses matter, and that everything is finite.
"""

from __future__ import annotations

import torch

import jair_kernels
from jair_kernels.testing import Case, run

CASES = [
    Case("fused_token_pool", 2, 70, 40, 3, mask="some"),
    Case("fused_token_pool", 1, 300, 17, 9, options={"reduction": "mean"}),
    Case(
        "fused_token_pool", 2, 5, 264, 20, mask="nan", options={"weighting": "sigmoid", "reduction": "mean"}
    ),
    Case("fused_tokenlearner", 2, 33, 48, 5, mask="some"),
    Case("fused_tokenfuser", 2, 33, 48, 5),
]


def main() -> None:
    count = 0
    for case in CASES:
        for backend in ("triton", "cuda"):
            for dtype in (torch.float32, torch.bfloat16):
                sample = case.sample(dtype, "cuda")
                if jair_kernels.why_not(case.op, backend, *sample.tensors.values()) is None:
                    results = run(sample, backend)
                    if not all(bool(t.isfinite().all()) for t in results.values()):
                        raise SystemExit(f"{case.op} {case.name} {dtype} on {backend}: not finite")
                    count += 1
    torch.cuda.synchronize()
    if count == 0:
        raise SystemExit("no backend ran")
    print(f"{count} calls")


if __name__ == "__main__":
    main()
