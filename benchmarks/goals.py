"""Speed-ups over the fastest peer that are aimed at, by device: those of a CPU mean one with AMX tiles."""

from __future__ import annotations

from benchmarks.shapes import (
    ANSWER,
    FUSE,
    GPU_STEP,
    LAYER,
    PHOTOS,
    RESAMPLE,
    SHORT,
    SINGLE,
    STEP,
    TO_IMAGE,
    TO_MANY,
    VIT,
    WIDE,
)

# By op, case and dtype: (forward, forward + backward).
_Goals = dict[tuple[str, str, str], tuple[float | None, float | None]]

_POOLING = {
    (str(VIT), "bf16"): (4.2, 3.8),
    (str(VIT), "fp32"): (2.1, 1.9),
    (str(PHOTOS), "bf16"): (4.2, 3.8),
    (str(PHOTOS), "fp32"): (2.1, 1.9),
    (str(WIDE), "bf16"): (4.2, 4.2),
    (str(WIDE), "fp32"): (3.0, 2.0),
    (str(SINGLE), "bf16"): (3.8, 3.2),
}
_FUSION = {
    (TO_IMAGE, "bf16"): (3.0, 2.8),
    (TO_IMAGE, "fp32"): (1.4, 1.4),
    (SHORT, "bf16"): (1.8, 1.9),
    (TO_MANY, "bf16"): (1.8, 2.2),
    (RESAMPLE, "bf16"): (2.2, 1.6),
    (RESAMPLE, "fp32"): (2.4, 1.6),
    (FUSE, "bf16"): (1.1, 1.3),
    (LAYER, "bf16"): (1.1, 1.2),
    (LAYER, "fp32"): (1.0, 1.0),
}
_CPU: _Goals = {
    ("JAIR", str(STEP), "bf16"): (None, 1.15),
    ("JAIR.generate", str(ANSWER), "bf16"): (1.0, None),
    ("JAIR.generate", str(ANSWER), "fp32"): (1.0, None),
}
_CPU |= {("fused_tokenlearner", *key): pair for key, pair in _POOLING.items()}
_CPU |= {(case.op, str(case), dtype): pair for (case, dtype), pair in _FUSION.items()}

# Of the whole model. One answer is mostly launches, which our CUDA graph saves.
_CUDA: _Goals = {
    ("JAIR", str(GPU_STEP), "bf16"): (None, 1.15),
    ("JAIR.generate", str(ANSWER), "bf16"): (3.0, None),
    ("JAIR.generate", str(ANSWER), "fp32"): (3.0, None),
}
TARGETS = {"cpu": _CPU, "cuda": _CUDA}
