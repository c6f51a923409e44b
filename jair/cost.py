"""What a model costs: operations and parameters; its memory is in `jair.memory`.

Operations are those of matrix products and convolutions in one teacher-forced forward pass of one sample,
with text and answer padded to the given lengths, causal attention in full and resampling in its projected
form. They are counted twice: by PyTorch's FlopCounterMode on tensors without memory, and in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jair._checks import whole_numbers
from jair.config import JAIRConfig
from jair.encoders import grid_side, image_settings, text_settings, with_settings
from jair.model import JAIR
from jair_kernels import use_backend


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one sample, by part, in closed form."""

    image_encoder: int
    text_encoder: int
    fusion: int
    decoder: int

    @property
    def total(self) -> int:
        """Of all parts; 2 x this is the number of FLOPs."""
        return self.image_encoder + self.text_encoder + self.fusion + self.decoder


def macs(config: JAIRConfig, text_length: int | None = None, target_length: int | None = None) -> Macs:
    """Multiply-accumulates of one sample in closed form; None = max_text_length, at most 16 words of answer.

    Raises:
        TypeError, ValueError: a length out of range, by name.
    """
    text_length, target_length = lengths(config, text_length, target_length)
    config = with_settings(config)
    tokens = grid_side(image_settings(config), config.image_size) ** 2
    fusion, fused = _fusion(config, tokens, text_length)
    return Macs(
        image_encoder=_backbone(config) + tokens * _backbone_width(config) * config.dim,
        text_encoder=_text_encoder(config, text_length),
        fusion=fusion,
        decoder=_decoder(config, fused, target_length),
    )


def _layer(config: JAIRConfig, n: int) -> int:
    """Four projections, two products of the attention, two of the MLP."""
    d = config.dim
    return 4 * n * d * d + 2 * n * n * d + 2 * n * d * config.mlp_dim


def _text_encoder(config: JAIRConfig, n: int) -> int:
    """Our layers; or T5's, whose heads have a width of their own and whose MLP may be gated."""
    t5 = text_settings(config)
    if t5 is None:
        return config.encoder_layers * _layer(config, n)
    d, inner = t5.d_model, t5.num_heads * t5.d_kv
    products = 3 if t5.is_gated_act else 2
    return int(t5.num_layers * (4 * n * d * inner + 2 * n * n * inner + products * n * d * t5.d_ff))


def _gated_fusion(config: JAIRConfig, l: int, n: int) -> int:
    """Eq. 3: l tokens ask n."""
    d = config.dim
    return 2 * l * d * d + 2 * n * d * d + 2 * l * n * d + 2 * l * d * config.mlp_dim


def _resampler(config: JAIRConfig, n: int) -> int:
    """Eq. 2 in its projected form; the latents' queries are made once for the batch of two."""
    d, l = config.dim, config.num_latents
    return 3 * l * d * d // 2 + 2 * n * d * d + 2 * l * n * d


def _image_resampler(config: JAIRConfig, n: int) -> int:
    d, k = config.dim, config.num_latents
    if config.resampler == "spatial":
        return 9 * n * d * (3 * d + k) + k * n * d
    if config.resampler == "tokenlearner":
        return n * 64 * (d + k) + k * n * d
    return _resampler(config, n)


def _fusion(config: JAIRConfig, image: int, text: int) -> tuple[int, int]:
    """(multiply-accumulates, tokens that the decoder attends)."""
    both, two, steps = image + text, 2 * config.num_latents, config.iterations
    if config.fusion == "concat":
        return config.num_layers * _layer(config, both), both
    if config.fusion == "cross_attention":
        each, fused = _gated_fusion(config, text, image), text
    elif config.fusion == "perceiver":
        each, fused = _gated_fusion(config, two, both), two
    elif config.fusion == "cotokenization":
        d = config.dim
        each, fused = 8 * both * d * d + 2 * both * d * config.num_latents, two
    else:
        each = _gated_fusion(config, config.num_latents, config.num_latents)
        fused = two if config.stream == "joint" else config.num_latents
    total = steps * each + (steps + config.num_layers) * _layer(config, fused)
    if config.fusion == "joint_adaptive":
        total += _image_resampler(config, image) + _resampler(config, text)
        if config.stream == "text":
            total += steps * config.dim**2  # shifts of the norms through wk and wv, once for the batch of two
    return total, fused


def _decoder(config: JAIRConfig, fused: int, length: int) -> int:
    """Self-attention, attention to the fused tokens, MLP; the tied head."""
    d = config.dim
    own = 6 * length * d * d + 2 * length * length * d + 2 * length * d * config.mlp_dim
    layer = own + 2 * fused * d * d + 2 * length * fused * d
    return config.decoder_layers * layer + length * d * config.vocab_size


def _backbone_width(config: JAIRConfig) -> int:
    settings = image_settings(config)
    return int(settings.hidden_size if settings.model_type == "vit" else settings.hidden_sizes[-1])


def _backbone(config: JAIRConfig) -> int:
    settings = image_settings(config)
    if settings.model_type == "vit":
        return _vit(settings, grid_side(settings, config.image_size) ** 2)
    return _resnet(settings, config.image_size)


def _vit(settings: Any, patches: int) -> int:
    n, d = patches + 1, settings.hidden_size
    layer = 4 * n * d * d + 2 * n * n * d + 2 * n * d * settings.intermediate_size
    return int(
        patches * settings.num_channels * settings.patch_size**2 * d + settings.num_hidden_layers * layer
    )


def _resnet(settings: Any, size: int) -> int:
    """Stem, pooling, stages; every stride of 2 rounds up, and the last stage has stride 1."""
    side, channels = -(-size // 2), settings.embedding_size
    total = side**2 * 49 * settings.num_channels * channels
    side = -(-side // 2)
    last = len(settings.hidden_sizes) - 1
    for stage, (width, depth) in enumerate(zip(settings.hidden_sizes, settings.depths, strict=True)):
        halves = stage > 0 or settings.downsample_in_first_stage
        for layer in range(depth):
            before = side**2
            if layer == 0 and halves and stage < last:
                side = -(-side // 2)
            after = side**2
            if layer == 0 and (halves or channels != width):
                total += after * channels * width  # the shortcut
            if settings.layer_type == "bottleneck":
                middle = width // 4
                first = after if settings.downsample_in_bottleneck else before
                total += first * channels * middle + after * middle * (9 * middle + width)
            else:
                total += after * 9 * width * (channels + width)
            channels = width
    return int(total)


def counted_macs(config: JAIRConfig, text_length: int | None = None, target_length: int | None = None) -> int:
    """Multiply-accumulates of one sample as FlopCounterMode counts them: a batch of 2, divided by 2.

    Errors as in `macs`.
    """
    text_length, target_length = lengths(config, text_length, target_length)
    with torch.device("meta"):
        model = JAIR(with_settings(config)).requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True), use_backend("reference"):
        model = model.to_empty(device="cpu")  # T5 looks into masks on "meta", which it cannot
        given = inputs(config, 2, text_length, target_length)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # no other is counted
            model(**given)
    flops: int = counter.get_total_flops()
    return flops // 4


def parameters(config: JAIRConfig) -> int:
    """Number of parameters."""
    with torch.device("meta"):
        model = JAIR(with_settings(config))
    return sum(parameter.numel() for parameter in model.parameters())


def inputs(config: JAIRConfig, batch: int, text_length: int, target_length: int) -> dict[str, torch.Tensor]:
    """Arguments of a model's forward pass with labels, without values."""
    return {
        "pixel_values": torch.empty(batch, 3, config.image_size, config.image_size),
        "input_ids": torch.ones(batch, text_length, dtype=torch.long),
        "attention_mask": torch.ones(batch, text_length, dtype=torch.bool),
        "labels": torch.ones(batch, target_length, dtype=torch.long),
    }


def lengths(config: JAIRConfig, text_length: int | None, target_length: int | None) -> tuple[int, int]:
    """The text's and the answer's, also where they are None; errors as in `macs`."""
    text_length = config.max_text_length if text_length is None else text_length
    target_length = min(16, config.max_target_length) if target_length is None else target_length
    whole_numbers(text_length=text_length, target_length=target_length)
    for name, length in (("text", text_length), ("target", target_length)):
        most = getattr(config, f"max_{name}_length")
        if length > most:
            raise ValueError(f"{name}_length: expected at most max_{name}_length = {most}, got {length}")
    return text_length, target_length
