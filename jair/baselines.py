"""The fusions that JAIR is compared with, in the same backbone and with the same interface.

image [B,N,D], text [B,L,D] and its mask go in; the tokens that the decoder attends and their mask come out.
How each is laid out is our decision; the published tables give names and operation counts. Image and text
carry their position embeddings when they come in; where both share a sequence, each gets a type embedding.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from jair._checks import modalities
from jair._parameters import LATENT, POSITION, reset, reset_linears, reset_parts, truncated_normal
from jair.config import JAIRConfig
from jair.fusion import JointAdaptiveFusion, gated_fusions, transformer_layers
from jair.transformer_layer import run_block, run_layers
from jair_kernels import fused_token_pool

Tensor = torch.Tensor
Fused = tuple[Tensor, Tensor | None]


class OneSequence(nn.Module):
    """[image; text] as one sequence [B,N+L,D], a type embedding added to each."""

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        self.checkpointing = config.gradient_checkpointing
        self.type_embedding = truncated_normal(2, config.dim, std=POSITION)
        self.stack = transformer_layers(config, config.num_layers)

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        reset_parts(self)
        reset(self.type_embedding, POSITION)

    def join(self, image: Tensor, text: Tensor, text_mask: Tensor | None) -> Fused:
        """The sequence and its mask."""
        modalities(image, text, text_mask, self.type_embedding[0])
        types = self.type_embedding.to(image.dtype)
        mask = None if text_mask is None else F.pad(text_mask, (image.shape[1], 0), value=True)
        return torch.cat([image + types[0], text + types[1]], dim=1), mask


class ConcatFusion(OneSequence):
    """num_layers layers on [image; text]."""

    def forward(self, image: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Fused:
        """-> ([B,N+L,D], its mask)."""
        x, mask = self.join(image, text, text_mask)
        return run_layers(self.stack, x, mask, checkpointing=self.checkpointing), mask


class CrossAttentionFusion(nn.Module):
    """In each iteration the text itself asks the image (Eq. 3), then a layer on the text; then the stack."""

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        self.checkpointing = config.gradient_checkpointing
        self.blocks = gated_fusions(config)
        self.layers = transformer_layers(config, config.iterations)
        self.stack = transformer_layers(config, config.num_layers)

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        reset_parts(self)

    def forward(self, image: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Fused:
        """-> ([B,L,D], text_mask)."""
        modalities(image, text, text_mask, next(self.layers.parameters()))
        for block, layer in zip(self.blocks, self.layers, strict=True):
            text = run_block(block, text, image, checkpointing=self.checkpointing)
            text = run_block(layer, text, text_mask, checkpointing=self.checkpointing)
        return run_layers(self.stack, text, text_mask, checkpointing=self.checkpointing), text_mask


class PerceiverFusion(OneSequence):
    """In each iteration 2 num_latents latents ask all inputs (Eq. 3), then a layer; then the stack."""

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__(config)
        self.latents = truncated_normal(2 * config.num_latents, config.dim, std=LATENT)
        self.blocks = gated_fusions(config)
        self.layers = transformer_layers(config, config.iterations)

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        super().reset_parameters()
        reset(self.latents, LATENT)

    def forward(self, image: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Fused:
        """-> ([B,2 num_latents,D], None)."""
        inputs, mask = self.join(image, text, text_mask)
        x = self.latents.to(inputs.dtype).expand(inputs.shape[0], -1, -1)
        for block, layer in zip(self.blocks, self.layers, strict=True):
            x = run_block(block, x, inputs, mask, checkpointing=self.checkpointing)
            x = run_block(layer, x, checkpointing=self.checkpointing)
        return run_layers(self.stack, x, checkpointing=self.checkpointing), None


class CotokenizationFusion(OneSequence):
    """Iterative co-tokenization: in each iteration tokens are pooled anew, from features that go on changing.

        y = y + MLP(y)                        over all inputs, hidden width 4 D
        state = state + [pool(image part of y); pool(text part of y)]         num_latents tokens of each
        state = T_i(state)

    pool weights the positions by the softmax of one linear map of them (no bias: it would not see it);
    the state starts at 0; every iteration has its own weights; then the stack.
    """

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__(config)
        dim, steps = config.dim, config.iterations
        self.fc1 = nn.ModuleList(nn.Linear(dim, 4 * dim) for _ in range(steps))
        self.fc2 = nn.ModuleList(nn.Linear(4 * dim, dim) for _ in range(steps))
        self.image_scores = nn.ModuleList(
            nn.Linear(dim, config.num_latents, bias=False) for _ in range(steps)
        )
        self.text_scores = nn.ModuleList(nn.Linear(dim, config.num_latents, bias=False) for _ in range(steps))
        self.layers = transformer_layers(config, steps)
        reset_linears(self)

    def forward(self, image: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Fused:
        """-> ([B,2 num_latents,D], None)."""
        y, _ = self.join(image, text, text_mask)
        sizes = [image.shape[1], text.shape[1]]
        state = y.new_zeros(())
        for i, layer in enumerate(self.layers):
            y = run_block(partial(self._mix, i), y, checkpointing=self.checkpointing)
            image, text = y.split(sizes, dim=1)
            of_image = fused_token_pool(image, self.image_scores[i](image))
            of_text = fused_token_pool(text, self.text_scores[i](text), mask=text_mask)
            pooled = torch.cat([of_image, of_text], dim=1)
            state = run_block(layer, state + pooled, checkpointing=self.checkpointing)
        return run_layers(self.stack, state, checkpointing=self.checkpointing), None

    def _mix(self, i: int, y: Tensor) -> Tensor:
        mixed: Tensor = y + self.fc2[i](F.gelu(self.fc1[i](y)))
        return mixed


FUSIONS = {
    "joint_adaptive": JointAdaptiveFusion,
    "concat": ConcatFusion,
    "cross_attention": CrossAttentionFusion,
    "perceiver": PerceiverFusion,
    "cotokenization": CotokenizationFusion,
}
