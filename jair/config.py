"""What a JAIR model is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jair._checks import LARGEST, whole_numbers
from jair_kernels import _checks as check

if TYPE_CHECKING:
    from typing_extensions import Self

CHOICES = {
    "fusion": ("joint_adaptive", "concat", "cross_attention", "perceiver", "cotokenization"),
    "stream": ("joint", "text"),
    "combination": ("weighted", "residual", "none"),
    "resampler": ("latent", "spatial", "tokenlearner"),
}
SIZES = (
    "image_size",
    "vocab_size",
    "dim",
    "num_heads",
    "mlp_dim",
    "num_latents",
    "iterations",
    "encoder_layers",
    "decoder_layers",
    "max_text_length",
    "max_target_length",
)


@dataclass(frozen=True)
class JAIRConfig:
    """Sizes and choices of a JAIR model; the defaults are the preset "base" (355 M parameters, 38.8 GMAC).

    The number of latents, iterations and layers is the paper's; all else is our decision, chosen so that the
    published operation counts come out.
    """

    image_size: int = 224
    image_encoder: str = (
        "resnet50"  # "resnet50", "resnet_tiny", "vit_base", or a checkpoint: folder or hub name
    )
    image_encoder_config: dict[str, Any] | None = (
        None  # of transformers; filled in when a checkpoint is loaded
    )
    text_encoder: str = "transformer"  # "transformer", or a T5 checkpoint: folder or hub name
    text_encoder_config: dict[str, Any] | None = None  # as image_encoder_config
    vocab_size: int = 32128
    dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 2048
    encoder_layers: int = 6  # of the text encoder "transformer"
    fusion: str = "joint_adaptive"
    num_latents: int = 64  # of each modality
    iterations: int = 4
    num_layers: int = 32  # after the iterations
    stream: str = "joint"  # this, combination and resampler belong to the fusion "joint_adaptive"
    combination: str = "weighted"
    resampler: str = "latent"  # of the image
    decoder_layers: int = 6
    max_text_length: int = 64
    max_target_length: int = 64
    pad_token_id: int = 0  # also the decoder's start token
    eos_token_id: int = 1
    eps: float = 1e-5  # of every LayerNorm
    gradient_checkpointing: bool = False  # layers of our own are computed again in the backward, not saved

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError, "<field>: expected ..., got ..."."""
        for least, names in ((1, SIZES), (0, ("num_layers", "pad_token_id", "eos_token_id"))):
            values = whole_numbers(least, **{name: getattr(self, name) for name in names})
            for name, value in zip(names, values, strict=True):
                if value > LARGEST:
                    raise ValueError(f"{name}: expected at most {LARGEST}, got {value}")
                object.__setattr__(self, name, value)  # an int: JSON refuses those of numpy
        for name, options in CHOICES.items():
            check.choice(name, getattr(self, name), options)
        check.divides("num_heads", self.num_heads, "dim", self.dim)
        check.head_width("num_heads", self.dim // self.num_heads)
        check.positive("eps", self.eps)
        object.__setattr__(self, "eps", float(self.eps))
        check.flag("gradient_checkpointing", self.gradient_checkpointing)
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ValueError(
                    f"{name}: expected less than vocab_size = {self.vocab_size}, got {getattr(self, name)}"
                )
        if self.pad_token_id == self.eos_token_id:
            raise ValueError(f"eos_token_id: expected another than pad_token_id, got {self.eos_token_id}")
        for name in ("image_encoder", "text_encoder"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}: expected a str, got {type(getattr(self, name)).__name__}")
            of_checkpoint = getattr(self, f"{name}_config")
            if not isinstance(of_checkpoint, (dict, type(None))):
                raise TypeError(f"{name}_config: expected a dict or None, got {type(of_checkpoint).__name__}")
        if self.text_encoder == "transformer" and self.text_encoder_config is not None:
            raise ValueError(
                "text_encoder_config: expected None for text_encoder = 'transformer', got settings: "
                f"{', '.join(map(str, self.text_encoder_config)) or 'none'}"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The model "tiny" (trains on two CPU cores), "base" or "large", with changes by field name.

        Raises:
            TypeError, ValueError: an unknown preset or field, or a value that does not fit, by name.
        """
        check.choice("preset", name, tuple(PRESETS))
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From values by field name; what is left out has its default. Errors as in `preset`."""
        if not isinstance(values, Mapping):
            raise TypeError(f"values: expected a mapping, got {type(values).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(
                f"{', '.join(map(str, unknown))}: expected fields among {', '.join(known)}, got unknown ones"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All values by field name."""
        return dataclasses.asdict(self)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_size": 64,
        "image_encoder": "resnet_tiny",
        "vocab_size": 384,  # bytes and special tokens, as ByT5 numbers them
        "dim": 128,
        "num_heads": 4,
        "mlp_dim": 256,
        "encoder_layers": 2,
        "num_latents": 16,
        "iterations": 2,
        "num_layers": 2,
        "decoder_layers": 2,
    },
    "base": {},
    "large": {"dim": 1024, "num_heads": 16, "mlp_dim": 2816, "encoder_layers": 8, "decoder_layers": 8},
}
