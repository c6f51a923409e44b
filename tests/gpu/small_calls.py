"""Every op and GPU backend on a few small inputs, forward and backward: what compute-sanitizer runs.

Accuracy is tested in test_device.py; here only the accesses matter, and that everything is finite. What is
printed has a digest of all results, for processes that share a GPU to be compared by.
"""

from __future__ import annotations

import hashlib

import torch

import jair_kernels
from jair_kernels.testing import Case, FusionCase, required, run

CASES = [
    Case("fused_token_pool", 2, 70, 40, 3, mask="some"),
    Case("fused_token_pool", 1, 300, 17, 9, options={"reduction": "mean"}),
    Case(
        "fused_token_pool", 2, 5, 264, 20, mask="nan", options={"weighting": "sigmoid", "reduction": "mean"}
    ),
    Case("fused_tokenlearner", 2, 33, 48, 5, mask="some"),
    Case("fused_tokenlearner", 3, 70, 384, 5, mask="nan"),
    Case("fused_tokenlearner", 1, 100, 768, 20),
    Case("fused_tokenfuser", 2, 33, 48, 5),
    FusionCase("fused_cross_attention", 2, 5, 70, 40, h=4, h_kv=2, mask="nan", ranges="wild"),
    FusionCase("fused_latent_resample", 2, 5, 33, mask="some", options={"method": "projected"}),
    FusionCase("fused_latent_resample", 2, 5, 33, mask="some", options={"method": "absorbed"}),
    FusionCase("fused_gated_fusion", 2, 5, 9, mask="nan"),
    FusionCase("fused_transformer_layer", 2, 33, 33, options={"causal": True}),
]


def main() -> None:
    count, digest = 0, hashlib.sha256()
    for case in CASES:
        for backend in ("triton", "cuda"):
            for dtype in (torch.float32, torch.bfloat16):
                sample = case.sample(dtype, "cuda")
                if jair_kernels.why_not(case.op, backend, *required(case.op, sample.tensors)) is None:
                    results = run(sample, backend)
                    if not all(bool(t.isfinite().all()) for t in results.values()):
                        raise SystemExit(f"{case.op} {case.name} {dtype} on {backend}: not finite")
                    for t in results.values():
                        digest.update(t.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
                    count += 1
    torch.cuda.synchronize()
    if count == 0:
        raise SystemExit("no backend ran")
    print(f"{count} calls, results {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main()
