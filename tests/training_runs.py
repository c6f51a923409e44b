"""Small training runs for the tests: a model of a few thousand weights on drawn scenes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 16,
    "image_size": 32,
}  # without batch norms, which mix the samples of a process
SMALL: dict[str, Any] = {
    "image_size": 32,
    "dim": 16,
    "num_heads": 2,
    "mlp_dim": 16,
    "encoder_layers": 1,
    "num_latents": 2,
    "iterations": 1,
    "num_layers": 1,
    "decoder_layers": 1,
}
SOURCES = ("scenes", "scenes,task=count", "scenes,task=caption")


def arguments(out: Path, *options: str, **changes: Any) -> list[str]:
    """Words of `jair train`; changes to the model."""
    words = ["train", str(out), "--batch-size", "6", "--warmup-steps", "2", *options]
    for source in SOURCES if "--source" not in options else ():
        words += ["--source", source]
    for name, value in {**SMALL, **changes}.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return words


def start(words: list[str], processes: int = 1) -> subprocess.Popen[str]:
    """The command, in `processes` processes."""
    command = [sys.executable, "-m", "jair"]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m", "jair"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def run(words: list[str], processes: int = 1) -> str:
    """Its standard output; raises if it fails."""
    process = start(words, processes)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def records(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]
