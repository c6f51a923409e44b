"""From pixels and words to tokens [B,N,D]: transformers' ResNet or ViT; a text encoder of our layers, or T5.

transformers is imported where a model is made, so that the rest of the package works without it.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from jair._checks import encoder_sizes
from jair._parameters import GRID, POSITION, reset_linears, truncated_normal
from jair.config import JAIRConfig
from jair.fusion import transformer_layers
from jair.transformer_layer import run_layers

BUILT_IN: dict[str, dict[str, Any]] = {
    "resnet50": {
        "model_type": "resnet"
    },  # version 1.5, transformers' default: strides in the 3x3 convolutions
    "resnet_tiny": {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 24,
        "hidden_sizes": [24, 48, 96],
        "depths": [1, 1, 1],
    },
    "vit_base": {"model_type": "vit"},  # ViT-B/16
}
# The class of each kind of encoder, and the options with which it has no part that is not used.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("ResNetModel", {}),
    "vit": ("ViTModel", {"add_pooling_layer": False}),
    "t5": ("T5EncoderModel", {}),
}


def optional_import(name: str, extra: str = "models") -> Any:
    """A module of an extra of this package.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name}: expected for JAIR models, but it cannot be imported; "
            f"pip install 'jair-kernels[{extra}]'"
        ) from error


def with_settings(config: JAIRConfig) -> JAIRConfig:
    """The configuration with transformers' settings of the encoders that are checkpoints."""
    if config.image_encoder not in BUILT_IN and config.image_encoder_config is None:
        settings = _settings_of("image_encoder", config.image_encoder, ("resnet", "vit"))
        config = dataclasses.replace(config, image_encoder_config=settings)
    if config.text_encoder != "transformer" and config.text_encoder_config is None:
        settings = _settings_of("text_encoder", config.text_encoder, ("t5",))
        config = dataclasses.replace(config, text_encoder_config=settings)
    return config


def _settings_of(argument: str, checkpoint: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """What of a checkpoint's settings makes its encoder; names of classes and of its makers are left out."""
    load = optional_import("transformers").AutoConfig.from_pretrained
    try:
        settings = load(checkpoint)
    except (OSError, ValueError) as error:
        reason = _first_line(error)
        raise ValueError(
            f"{argument}: expected a checkpoint, folder or hub name, got {checkpoint!r} ({reason})"
        ) from error
    if settings.model_type not in kinds:
        raise ValueError(
            f"{argument}: expected a checkpoint of {' or '.join(kinds)}, got one of {settings.model_type}"
        )
    left_out = ("architectures", "dtype", "id2label", "label2id", "transformers_version")
    known = _known(settings)
    of_checkpoint: dict[str, Any] = settings.to_diff_dict()
    return {name: v for name, v in of_checkpoint.items() if name in known and name not in left_out}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _known(settings: Any) -> set[str]:
    """The names of transformers' settings of this kind, and one that ours had of each kind."""
    return {*type(settings)().to_dict(), *settings.attribute_map, "image_size"}


def _settings(field: str, values: dict[str, Any], kinds: tuple[str, ...]) -> Any:
    """transformers' settings of these values.

    Raises:
        ValueError: another kind of model, a name that transformers does not know, a value it refuses.
    """
    of_kind = optional_import("transformers").AutoConfig.for_model
    kind = values.get("model_type")
    if kind not in kinds:
        raise ValueError(f"{field}: expected model_type {' or '.join(kinds)}, got {kind!r}")
    try:
        settings = of_kind(**values)
    except Exception as error:  # transformers has its own classes for what it refuses
        raise ValueError(f"{field}: expected settings of a {kind}, got {_first_line(error)}") from error
    unknown = sorted(set(values) - _known(settings))
    if unknown:
        raise ValueError(f"{field}: expected settings of a {kind}, got unknown ones: {', '.join(unknown)}")
    encoder_sizes(field, settings)
    return settings


def image_settings(config: JAIRConfig) -> Any:
    """transformers' settings of the image encoder of a configuration `with_settings`."""
    values = config.image_encoder_config
    if values is None:
        values = dict(BUILT_IN[config.image_encoder])
        if values["model_type"] == "vit":
            values["image_size"] = config.image_size
    settings = _settings("image_encoder_config", values, ("resnet", "vit"))
    if settings.num_channels != 3:
        raise ValueError(
            f"image_encoder: expected one for 3 colours, got num_channels {settings.num_channels}"
        )
    return settings


def text_settings(config: JAIRConfig) -> Any:
    """transformers' settings of the T5 of a configuration `with_settings`; None = the encoder is ours."""
    values = config.text_encoder_config if config.text_encoder != "transformer" else None
    return None if values is None else _settings("text_encoder_config", values, ("t5",))


def _encoder(argument: str, settings: Any, checkpoint: str | None) -> Any:
    """transformers' encoder with these settings, and with the weights of a checkpoint, if there is one."""
    class_name, options = CLASSES[settings.model_type]
    encoder_class = getattr(optional_import("transformers"), class_name)
    if checkpoint is None:
        try:
            return encoder_class(settings, **options)
        except Exception as error:  # of any class: what the settings say is looked up, divided, multiplied
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise ValueError(
                f"{argument}_config: expected settings of a {settings.model_type}, got some that make none "
                f"({reason})"
            ) from error
    try:
        encoder, report = encoder_class.from_pretrained(
            checkpoint,
            config=settings,
            dtype=torch.get_default_dtype(),
            use_safetensors=True,  # nothing is unpickled
            output_loading_info=True,
            **options,
        )
    except (RuntimeError, optional_import("safetensors").SafetensorError) as error:
        raise ValueError(
            f"{argument}: expected a checkpoint whose weights fit its config.json, got {checkpoint!r} "
            f"({_first_line(error)})"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(f"{argument}: expected all weights of {class_name}, got none for {missing}")
    return encoder


class ImageEncoder(nn.Module):
    """Eq. 1: ``W1 x`` of the features x of a ResNet or ViT, plus learned position embeddings: [B,N,D].

    A ResNet keeps stride 1 in its last stage (our decision): 14 x 14 tokens of 224 x 224 pixels. Of a ViT the
    class token is left out; it interpolates its own position embeddings if it was made for another size.
    """

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        built = config.image_encoder in BUILT_IN or config.image_encoder_config is not None
        config = with_settings(config)
        settings = image_settings(config)
        self.backbone = _encoder("image_encoder", settings, None if built else config.image_encoder)
        self.is_resnet = settings.model_type == "resnet"
        self.interpolate = not self.is_resnet and settings.image_size != config.image_size
        if self.is_resnet:
            for layer in self.backbone.encoder.stages[-1].modules():
                if isinstance(layer, nn.Conv2d):
                    layer.stride = (1, 1)
        width = settings.hidden_sizes[-1] if self.is_resnet else settings.hidden_size
        self.project = nn.Linear(width, config.dim)
        side = grid_side(settings, config.image_size)
        self.positions = truncated_normal(side**2, config.dim, std=GRID)
        reset_linears(self.project)

    def fold_batch_norms(self) -> None:
        """Put every batch norm of a ResNet, as it is in evaluation, into the convolution before it."""
        for block in [*self.backbone.modules()]:
            if isinstance(getattr(block, "normalization", None), nn.BatchNorm2d):
                block.convolution = fuse_conv_bn_eval(block.convolution, block.normalization)
                block.normalization = nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values [B,3,S,S] -> [B,N,D]."""
        if self.is_resnet:
            # Convolutions and norms follow the layout of what they are given; in this one they are faster.
            x = self.backbone.embedder(pixel_values.contiguous(memory_format=torch.channels_last))
            for stage in self.backbone.encoder.stages:
                x = stage(x)
            x = x.flatten(2).transpose(1, 2)
        else:
            x = self.backbone(pixel_values, interpolate_pos_encoding=self.interpolate)
            x = x.last_hidden_state[:, 1:]
        x = self.project(x)
        y: torch.Tensor = x + self.positions.to(x.dtype)
        return y


def grid_side(settings: Any, image_size: int) -> int:
    """Image tokens along one side, by transformers' settings of the ResNet or ViT."""
    if settings.model_type == "vit":
        if image_size < settings.patch_size:
            raise ValueError(
                f"image_size: expected at least the patch_size {settings.patch_size}, got {image_size}"
            )
        return int(image_size // settings.patch_size)
    # A stride of 2 halves, rounding up: stem, pooling, every stage but the last and, mostly, the first.
    stages = len(settings.hidden_sizes)
    halvings = 2 + (stages - 2 + bool(settings.downsample_in_first_stage) if stages > 1 else 0)
    return int(-(-image_size // 2**halvings))


class TextEncoder(nn.Module):
    """Learned position embeddings, pre-LN transformer layers, and a final LayerNorm.

    Positions count the kept tokens, so that padding on either side changes nothing.
    """

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        self.checkpointing = config.gradient_checkpointing
        self.positions = truncated_normal(config.max_text_length, config.dim, std=POSITION)
        self.layers = transformer_layers(config, config.encoder_layers)
        self.norm = nn.LayerNorm(config.dim, config.eps)

    def forward(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """embedded [B,L,D], mask bool [B,L] -> [B,L,D]."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        x = embedded + self.positions[positions]
        y: torch.Tensor = self.norm(run_layers(self.layers, x, mask, checkpointing=self.checkpointing))
        return y


class T5TextEncoder(nn.Module):
    """The encoder of a T5 checkpoint. Its word embedding becomes the model's: see `take_embedding`."""

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        checkpoint = config.text_encoder if config.text_encoder_config is None else None
        settings = text_settings(with_settings(config))
        for name, ours in (("d_model", config.dim), ("vocab_size", config.vocab_size)):
            theirs = getattr(settings, name)
            if theirs != ours:
                raise ValueError(
                    f"text_encoder: expected a checkpoint with {name} = {ours} like the model, got {theirs}"
                )
        t5 = _encoder("text_encoder", settings, checkpoint)
        self._embedding = [t5.shared.weight.detach()]  # in a list, since it is no parameter of this module
        self.stack = t5.encoder
        self.stack.embed_tokens = None

    def take_embedding(self) -> torch.Tensor:
        """The checkpoint's word embedding [V,D], once."""
        embedding: torch.Tensor = self._embedding.pop()
        return embedding

    def forward(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """embedded [B,L,D], mask bool [B,L] -> [B,L,D]."""
        encoded = self.stack(inputs_embeds=embedded, attention_mask=mask.long())
        y: torch.Tensor = encoded.last_hidden_state
        return y
