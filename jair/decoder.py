"""The decoder: answers word by word, from what it has said and from the fused tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from jair._parameters import POSITION, reset_linears, truncated_normal
from jair.config import JAIRConfig
from jair.transformer_layer import run_block
from jair_kernels import fused_cross_attention

Tensor = torch.Tensor
KeysValues = tuple[Tensor, Tensor]


@dataclass
class DecodingState:
    """Keys and values of the fused tokens and of the words so far, [B,h,N,d] each, layer by layer.

    Room for all words is there from the start, so that shapes and addresses stay the same from step to step;
    what is not yet written lies outside `seen`, the kv_range [1,1,2] of the next word, which goes to
    `position` [1].
    """

    fused: list[KeysValues]
    mask: Tensor | None
    words: list[KeysValues]
    seen: Tensor
    position: Tensor

    def reorder(self, rows: Tensor) -> None:
        """Continue with these rows of the batch's words; samples stay where they are."""
        for tensors in self.words:
            for tensor in tensors:
                tensor.copy_(tensor.index_select(0, rows))


class DecoderLayer(nn.Module):
    """A pre-LN layer: causal self-attention, attention to the fused tokens, MLP; no bias of q, k and v.

    `fused_transformer_layer` has two of these three, and takes no keys from a cache; so the layer calls
    `fused_cross_attention` for both attentions.
    """

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(dim, config.eps)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, config.eps)
        self.cross_q = nn.Linear(dim, dim, bias=False)
        self.cross_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.cross_out = nn.Linear(dim, dim)
        self.norm3 = nn.LayerNorm(dim, config.eps)
        self.fc1 = nn.Linear(dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, dim)
        reset_linears(self)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None, kv_range: Tensor) -> Tensor:
        """x [B,L,D], tokens [B,K,D] and their mask [B,K]; kv_range [B,L,2]: which words each word sees."""
        q, k, v = self._heads(self.qkv(self.norm1(x)))
        return self._rest(x, fused_cross_attention(q, k, v, kv_range=kv_range), self.of_fused(tokens), mask)

    def step(self, x: Tensor, state: DecodingState, index: int) -> Tensor:
        """One more word, x [B,1,D], after those in layer `index` of the state, to which it is added."""
        q, k, v = self._heads(self.qkv(self.norm1(x)))
        keys, values = state.words[index]
        keys.index_copy_(2, state.position, k)
        values.index_copy_(2, state.position, v)
        seen = state.seen.expand(x.shape[0], 1, 2)
        attended = fused_cross_attention(q, keys, values, kv_range=seen)
        return self._rest(x, attended, state.fused[index], state.mask)

    def of_fused(self, tokens: Tensor) -> KeysValues:
        """Keys and values of the fused tokens, in one product."""
        k, v = self._heads(self.cross_kv(tokens))
        return k, v

    def _rest(self, x: Tensor, attended: Tensor, fused: KeysValues, mask: Tensor | None) -> Tensor:
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        (q,) = self._heads(self.cross_q(self.norm2(x)))
        x = x + self.cross_out(fused_cross_attention(q, *fused, mask=mask).transpose(1, 2).flatten(2))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm3(x))))
        return y

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B,L,c D] as c times [B,h,L,d]."""
        width = self.out.in_features // self.num_heads
        parts = x.unflatten(-1, (-1, self.num_heads, width)).unbind(2)
        return tuple(part.transpose(1, 2) for part in parts)


class Decoder(nn.Module):
    """Position embeddings, decoder_layers layers and a final LayerNorm: embedded words to [B,L,D]."""

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        self.checkpointing = config.gradient_checkpointing
        self.positions = truncated_normal(config.max_target_length, config.dim, std=POSITION)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.dim, config.eps)

    def forward(self, embedded: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """All words at once: embedded [B,L,D], tokens [B,K,D], mask bool [B,K] or None -> [B,L,D]."""
        batch, length, _ = embedded.shape
        end = torch.arange(1, length + 1, device=embedded.device)
        kv_range = torch.stack([torch.zeros_like(end), end], dim=-1).expand(batch, length, 2)
        x = embedded + self.positions[:length]
        for layer in self.layers:
            x = run_block(layer, x, tokens, mask, kv_range, checkpointing=self.checkpointing)
        y: Tensor = self.norm(x)
        return y

    def start(self, tokens: Tensor, mask: Tensor | None, max_length: int, beams: int) -> DecodingState:
        """The state before the first word, with each sample `beams` times in a row."""

        def repeat(x: Tensor) -> Tensor:
            return x if beams == 1 else x.repeat_interleave(beams, dim=0)

        pairs = [layer.of_fused(tokens) for layer in self.layers]  # type: ignore[operator]
        fused = [(repeat(k), repeat(v)) for k, v in pairs]
        batch, heads, _, width = fused[0][0].shape
        room = [
            (k.new_zeros(batch, heads, max_length, width), v.new_zeros(batch, heads, max_length, width))
            for k, v in fused
        ]
        position = torch.zeros(1, dtype=torch.long, device=tokens.device)
        seen = torch.stack([position, position + 1], dim=-1).unsqueeze(0)
        return DecodingState(fused, None if mask is None else repeat(mask), room, seen, position)

    def step(self, embedded: Tensor, state: DecodingState) -> Tensor:
        """One word more: embedded [B,D] -> [B,D]."""
        x = (embedded + self.positions[state.position]).unsqueeze(1)
        for index, layer in enumerate(self.layers):
            x = layer.step(x, state, index)  # type: ignore[operator]
        state.position += 1
        state.seen[..., 1] += 1
        y: Tensor = self.norm(x[:, 0])
        return y
