"""The rows of the accuracy table: the paper's, in the size of the preset "tiny"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jair import JAIRConfig

# As in "base", latents are fewer than image tokens (8 of 64, there 64 of 196) and the stack outweighs the
# iterations: with the preset's two layers every model is mostly encoders, and all cost the same. All start
# with the encoder of experiments.encoder.
BASE: dict[str, Any] = {
    "image_encoder": "experiments/results/encoder",
    "num_latents": 8,
    "num_layers": 4,
    "iterations": 2,
    "max_text_length": 32,
}


@dataclass(frozen=True)
class Variant:
    """A row: the tables it stands in, its own first, what sets its model apart from ours at `BASE`, and how
    many times the steps of the others it is trained.
    """

    name: str
    tables: tuple[str, ...]
    changes: dict[str, Any]
    length: float = 1.0

    def config(self, base: dict[str, Any], vocab_size: int) -> JAIRConfig:
        """The model of this row."""
        return JAIRConfig.preset("tiny", **{**base, **self.changes, "vocab_size": vocab_size})


TABLES = {
    "fusion": "Fusions",
    "resampling": "Resampling of the image",
    "iterations": "Iterations",
    "tokens": "Tokens of each modality",
    "combination": "Combination in each iteration",
    "budget": "As many operations in training",
}
LONGER = 1.9  # what the operations of "concat" are of ours
VARIANTS = (
    Variant("ours", tuple(TABLES), {}),
    Variant("ours, stream text", ("fusion",), {"stream": "text"}),
    Variant("concat", ("fusion", "budget"), {"fusion": "concat"}),
    Variant("cross_attention", ("fusion",), {"fusion": "cross_attention"}),
    Variant("perceiver", ("fusion",), {"fusion": "perceiver"}),
    Variant("cotokenization", ("fusion",), {"fusion": "cotokenization"}),
    Variant("tokenlearner", ("resampling",), {"resampler": "tokenlearner"}),
    Variant("spatial", ("resampling",), {"resampler": "spatial"}),
    *(Variant(f"{n} iterations", ("iterations",), {"iterations": n}) for n in (1, 4, 8)),
    *(Variant(f"{n} tokens", ("tokens",), {"num_latents": n}) for n in (4, 16, 32)),
    Variant("residual", ("combination",), {"combination": "residual"}),
    Variant("none", ("combination",), {"combination": "none"}),
    Variant(f"ours, {LONGER} times the steps", ("budget",), {}, LONGER),
)
OURS, REFERENCE = "ours", "concat"


def choose(names: list[str]) -> list[Variant]:
    """The variants of these names; all without names.

    Raises:
        ValueError: an unknown name.
    """
    known = {variant.name: variant for variant in VARIANTS}
    for name in names:
        if name not in known:
            raise ValueError(f"--only: expected {' or '.join(map(repr, known))}, got {name!r}")
    return [variant for variant in VARIANTS if not names or variant.name in names]
