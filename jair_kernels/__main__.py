"""``python -m jair_kernels [--json]``: what is installed, what runs here or why not, what GPUs verified."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import jair_kernels
from jair_kernels import _backends, _library

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
GPU_BACKENDS = ("triton", "cuda")
CUDA_OPS = ("fused_token_pool", "fused_tokenlearner")  # in CUDA C++, though this library may be built without
VERIFIED = Path(__file__).with_name("verified.json")

# The inputs that why_not looks at, without data: B, N, D, H, K = 2, 196, 768, 64, 8. An op that is not here
# is asked about by element type alone.
_SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "fused_tokenlearner": ((2, 196, 768), (64, 768), (8, 64)),
    "fused_token_pool": ((2, 196, 768), (2, 196, 8)),
    "fused_tokenfuser": ((2, 196, 768), (2, 8, 768), (64, 768), (8, 64)),
    "fused_cross_attention": ((2, 12, 64, 64), (2, 12, 196, 64), (2, 12, 196, 64)),
    "fused_latent_resample": ((2, 196, 768), (64, 768), (768, 768), (768, 768)),
    "fused_gated_fusion": ((2, 64, 768), (2, 196, 768)),
    "fused_transformer_layer": ((2, 128, 768),),
}


def _triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[dict[str, str]]:
    if not torch.cuda.is_available():
        return []
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [{"name": d.name, "capability": f"{d.major}.{d.minor}"} for d in devices]


def _isa() -> dict[str, str] | None:
    if _library.load_error is not None:
        return None
    ops, names = torch.ops.jair_kernels, _library.ISAS
    return {"active": names[ops.cpu_isa()], "best": names[ops.cpu_isa_best()]}


def _support() -> list[dict[str, str | None]]:
    rows: list[dict[str, str | None]] = []
    for op in _backends.operators():
        for backend in _backends.BACKENDS:
            for name, dtype in DTYPES.items():
                sizes = _SIZES.get(op, ((1, 1, 1),))
                inputs = [torch.empty(size, dtype=dtype, device="meta") for size in sizes]
                reason = _backends.why_not(op, backend, *inputs)
                rows.append({"op": op, "backend": backend, "dtype": name, "reason": reason})
    return rows


def report() -> dict[str, Any]:
    """Everything the command prints; a reason of None means that it runs here, a verification
    of None that there is no such kernel.
    """
    verified = json.loads(VERIFIED.read_text(encoding="utf-8"))
    return {
        "package": jair_kernels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "cuda": torch.version.cuda,
        "gpus": _gpus(),
        "library": _library.load_error,
        "cpu_isa": _isa(),
        "backends": {name: _backends.unavailable(name) for name in _backends.BACKENDS},
        "support": _support(),
        "on_gpu": _on_gpu(verified),
        "verified": verified,
    }


def _verification(verified: list[dict[str, str]], op: str, backend: str) -> str | None:
    """On which GPUs this version of a kernel has passed its tests; None = there is no kernel."""
    if backend not in _backends.kernels_of(op) and (backend != "cuda" or op not in CUDA_OPS):
        return None
    records = [r for r in verified if (r["op"], r["backend"]) == (op, backend)]
    now = sorted({r["gpu"] for r in records if r["version"] == jair_kernels.__version__})
    if now:
        return f"verified on {', '.join(now)}"
    before = sorted({f"{r['gpu']} at {r['version']}" for r in records})
    return "unverified on a GPU" + (f" at this version (last: {', '.join(before)})" if before else "")


def _on_gpu(verified: list[dict[str, str]]) -> list[dict[str, str | None]]:
    pairs = ((op, backend) for op in _backends.operators() for backend in GPU_BACKENDS)
    return [{"op": op, "backend": b, "verification": _verification(verified, op, b)} for op, b in pairs]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in (header, *rows))
    return ["  " + "  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines]


def _by_op(cell: Callable[[str, str], str], backends: tuple[str, ...]) -> list[str]:
    rows = [(op, *(cell(op, backend) for backend in backends)) for op in _backends.operators()]
    return _table(("op", *backends), rows)


def text(facts: dict[str, Any]) -> str:
    """The report for people."""

    def supported(op: str, backend: str) -> str:
        cells = [r for r in facts["support"] if (r["op"], r["backend"]) == (op, backend)]
        return " ".join(r["dtype"] for r in cells if r["reason"] is None) or "no"

    def verified(op: str, backend: str) -> str:
        return _verification(facts["verified"], op, backend) or "none"

    isa = facts["cpu_isa"]
    gpus = [f"{gpu['name']} (sm_{gpu['capability'].replace('.', '')})" for gpu in facts["gpus"]]
    backends = facts["backends"].items()
    reasons = [(name, "available" if why is None else f"no: {why}") for name, why in backends]
    return "\n".join(
        [
            f"jair-kernels {facts['package']}, Python {facts['python']}, torch {facts['torch']}, "
            f"triton {facts['triton'] or 'none'}, CUDA {facts['cuda'] or 'none'}",
            f"library: {facts['library'] or 'loaded'}",
            f"CPU kernels: {isa['active']}, of at most {isa['best']}" if isa else "CPU kernels: none",
            f"GPU: {', '.join(gpus) or 'none'}",
            "",
            "Backends",
            *_table(("backend", "here"), reasons),
            "",
            "What runs here, by element type",
            *_by_op(supported, _backends.BACKENDS),
            "",
            "What has run on a GPU",
            *_by_op(verified, GPU_BACKENDS),
        ]
    )


def main() -> None:
    """Prints the report, as text or (--json) as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m jair_kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    facts = report()
    print(json.dumps(facts, indent=2) if parser.parse_args().json else text(facts))


if __name__ == "__main__":
    main()
