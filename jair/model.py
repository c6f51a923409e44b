"""The JAIR model, based on the paper's abstract, equations and published tables (arXiv 2305.19924).

Piergiovanni and Angelova, "Joint Adaptive Representations for Image-Language Learning". What those do not
tell is marked "our decision" where it stands.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from jair import generation
from jair._checks import device as check_device
from jair._checks import finite, whole_numbers
from jair._checks import words as check_words
from jair._files import replacing, write_text
from jair._parameters import reset
from jair._saved import read_empty, read_weights
from jair.baselines import FUSIONS
from jair.config import JAIRConfig
from jair.decoder import Decoder
from jair.encoders import (
    ImageEncoder,
    T5TextEncoder,
    TextEncoder,
    optional_import,
    with_settings,
)
from jair.pretrained import model_folder
from jair_kernels import _checks as check

if TYPE_CHECKING:
    from typing_extensions import Self

Tensor = torch.Tensor
IGNORED = -100  # in labels


class JAIROutput(NamedTuple):
    """loss: mean cross-entropy over the labels that are not -100, or None without labels; logits [B,T,V]."""

    loss: Tensor | None
    logits: Tensor


class JAIR(nn.Module):
    """Image and question in, words out: encoders, joint adaptive fusion (or another), decoder.

        image = W1 ResNet(pixel_values) + positions                             Eq. 1
        text  = encoder(sqrt(D) embedding(input_ids))
        fused = LN(fusion(image, text))                                         Eq. 2 to Eq. 4
        logits = embedding^T decoder(sqrt(D) embedding(decoder_input_ids), fused)

    Encoders, decoder, the tied embedding and the LayerNorm after the fusion are our decision. `config.fusion`
    chooses between JAIR's and those it is compared with. In training mode the ResNet's batch norms mix the
    samples of a batch: call `eval()` before asking for logits; `generate` does so itself.

    Layers start with truncated normals of deviation sqrt(1 / fan-in) and zero biases, words with sqrt(1 / D),
    their positions with 0.3, positions in images with 0.5, latents with 2 (our decision); ResNet and ViT as
    in transformers; an encoder given as a checkpoint starts with its weights. With a T5 checkpoint, words
    enter as they are, and logits are divided by sqrt(D).
    """

    def __init__(self, config: JAIRConfig) -> None:
        super().__init__()
        self.folded = False
        self.image_encoder = ImageEncoder(config)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.text_encoder: TextEncoder | T5TextEncoder
        if config.text_encoder == "transformer":
            self.text_encoder = TextEncoder(config)
            reset(self.embedding.weight, config.dim**-0.5)
            self.word_scale, self.head_scale = config.dim**0.5, 1.0
        else:
            self.text_encoder = T5TextEncoder(config)
            self.embedding.weight = nn.Parameter(self.text_encoder.take_embedding())
            # T5's words enter as they are, and its own tied head divides by sqrt(D).
            self.word_scale, self.head_scale = 1.0, config.dim**-0.5
        self.fusion = FUSIONS[config.fusion](config)
        self.fused_norm = nn.LayerNorm(config.dim, config.eps)
        self.decoder = Decoder(config)
        self.config = with_settings(config)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> JAIROutput:
        """Logits of every word of an answer, given those before it.

        Args:
            pixel_values: [B,3,S,S], S = image_size. input_ids: int64 or int32 [B,L], L up to max_text_length.
            attention_mask: [B,L], nonzero = keep; padding may stand on either side and has no effect. None:
                what is not pad_token_id.
            decoder_input_ids: so too, [B,T], T up to max_target_length; None = the labels, shifted right.
            labels: as those; -100 is ignored.

        Raises:
            TypeError: a wrong type or dtype. ValueError: a wrong shape, or neither words nor labels.
        """
        given = decoder_input_ids
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("decoder_input_ids: expected them or labels, got neither")
            check_words("labels", labels, self.config.max_target_length, self.config.vocab_size, IGNORED)
            decoder_input_ids = self.shift_right(labels)
        longest, words = self.config.max_target_length, self.config.vocab_size
        check_words("decoder_input_ids", decoder_input_ids, longest, words)
        tokens, mask = self.encode(pixel_values, input_ids, attention_mask)
        if len(decoder_input_ids) != len(tokens):
            name = "labels" if given is None else "decoder_input_ids"
            got = len(decoder_input_ids)
            raise ValueError(f"{name}: expected a batch of {len(tokens)} like input_ids, got {got}")
        logits = self.lm_head(self.decoder(self.embed(decoder_input_ids), tokens, mask))
        if labels is None:
            return JAIROutput(None, logits)
        if labels.shape != decoder_input_ids.shape:
            raise ValueError(
                f"labels: expected shape {list(decoder_input_ids.shape)} like decoder_input_ids, "
                f"got {list(labels.shape)}"
            )
        check_words("labels", labels, longest, words, IGNORED)
        total = F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten().long(), ignore_index=IGNORED, reduction="sum"
        )
        return JAIROutput(total / (labels != IGNORED).sum().clamp(min=1), logits)

    def encode(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The fused tokens [B,K,D] and their mask (None: none is padding). Arguments as in `forward`."""
        mask = self.check_inputs(pixel_values, input_ids, attention_mask)
        text = self.text_encoder(self.embed(input_ids), mask)
        tokens, kept = self.fusion(self.image_encoder(pixel_values), text, mask)
        return self.fused_norm(tokens), kept

    def check_inputs(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mask of the text, bool [B,L]; arguments and errors as in `forward`."""
        check_words("input_ids", input_ids, self.config.max_text_length, self.config.vocab_size)
        size = self.config.image_size
        check.main_input("pixel_values", pixel_values, "B 3 S S")
        weights = self.embedding.weight.dtype
        if pixel_values.dtype != weights and check.autocast_dtype(pixel_values) is None:
            raise TypeError(
                f"pixel_values: expected dtype {str(weights)[6:]} like the model's weights, "
                f"got {str(pixel_values.dtype)[6:]}"
            )
        if pixel_values.shape != (len(input_ids), 3, size, size):
            raise ValueError(
                f"pixel_values: expected shape [B, 3, S, S] = {[len(input_ids), 3, size, size]}, "
                f"got {list(pixel_values.shape)}"
            )
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        elif not isinstance(attention_mask, torch.Tensor):
            raise TypeError(f"attention_mask: expected a tensor or None, got {type(attention_mask).__name__}")
        elif attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask: expected shape {list(input_ids.shape)} like input_ids, "
                f"got {list(attention_mask.shape)}"
            )
        return attention_mask.bool()

    def embed(self, words: Tensor) -> Tensor:
        """words int64 [...] -> [...,D], as text encoder and decoder read them."""
        y: Tensor = self.embedding(words) * self.word_scale
        return y

    def lm_head(self, hidden: Tensor) -> Tensor:
        """hidden [...,D] -> logits [...,V], by the embedding itself."""
        return F.linear(hidden * self.head_scale, self.embedding.weight)

    def shift_right(self, labels: Tensor) -> Tensor:
        """What the decoder reads to say `labels`: the start token (pad_token_id), then all but the last."""
        start = labels.new_full((len(labels), 1), self.config.pad_token_id)
        words = torch.cat([start, labels[:, :-1]], dim=1)
        return words.masked_fill(words == IGNORED, self.config.pad_token_id)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        *,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Answers, [B, at most 1 + max_new_tokens]: start token, words, eos_token_id, then pad_token_id.

        Computed in evaluation mode, also while the model is training; its mode and buffers stay.

        Args:
            pixel_values, input_ids, attention_mask: as in `forward`.
            max_new_tokens: most words after the start token, up to max_target_length; None = at most 16.
            num_beams: beams of a beam search; 1 = greedy. length_penalty: the power of the length by which a
                beam's score is divided in the end.
            do_sample: draw words instead; temperature, top_k, top_p and generator say how.
            use_cache: keep keys and values from word to word; without, the answer is the same, but slower.

        Raises:
            TypeError, ValueError: an argument out of range, by name.
        """
        max_new_tokens = generation.longest_answer(max_new_tokens, self.config.max_target_length)
        whole_numbers(num_beams=num_beams)
        check.flag("do_sample", do_sample)
        check.flag("use_cache", use_cache)
        finite("length_penalty", length_penalty)
        if do_sample and num_beams > 1:
            raise ValueError(f"num_beams: expected 1 with do_sample, got {num_beams}")
        draw = generation.sampler(temperature, top_k, top_p, generator)
        choose = draw if do_sample else generation.choose_greedily
        words = input_ids.new_full((len(input_ids), 1), self.config.pad_token_id)
        ends = (self.config.pad_token_id, self.config.eos_token_id)
        with generation.evaluating(self):
            tokens, mask = self.encode(pixel_values, input_ids, attention_mask)
            next_word = generation.NextWord(
                self, tokens, mask, max_new_tokens, beams=num_beams, use_cache=use_cache
            )
            if num_beams > 1:
                best = generation.beam_search
                return best(next_word, words, max_new_tokens, num_beams, length_penalty, *ends)
            return generation.extend(next_word, words, max_new_tokens, choose, *ends)

    def for_inference(self) -> Self:
        """This model in evaluation mode, its batch norms folded into the convolutions before them and its
        convolutions channels-last; answers change by rounding only.

        It can be trained or saved no more.
        """
        self.eval().requires_grad_(False)
        self.image_encoder.fold_batch_norms()
        self.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.folded = True
        return self

    def train(self, mode: bool = True) -> Self:
        """As in nn.Module; refused after `for_inference`."""
        if mode and self.folded:
            raise ValueError("mode: expected False after for_inference(), got True")
        return super().train(mode)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, all that `from_pretrained` needs, whole or not at all.

        Raises:
            ValueError: the model is one after `for_inference`.
        """
        if self.folded:
            raise ValueError("save_pretrained: expected a model before for_inference(), got one after it")
        path = Path(folder)
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replacing(path / "model.safetensors") as file:
            optional_import("safetensors.torch").save_file(state, file)
        write_text(path / "config.json", json.dumps(self.config.to_dict(), indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The model that `save_pretrained` wrote, in evaluation mode.

        Args:
            folder: where it is, or "tiny", a small model that comes with the package, trained on `scenes`.
            device: where it goes. dtype: of its floating parameters; None = as they were saved, bit for bit:
                "tiny" in float16. With torch.float32, or after `.float()`, it takes float32 pixels.

        Raises:
            OSError: a file is missing. ValueError: a damaged file or one of another model, by what is wrong
                with it, or a device that is not here. TypeError: a dtype of another kind.
        """
        path = model_folder(folder)
        check_device("device", device)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype: expected a floating torch.dtype or None, got {dtype!r}")
        model = read_empty(path, cls)
        state = read_weights(path, str(device), model.state_dict())
        # Copied, since in the file they stand at odd addresses, where a product may round otherwise.
        model.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
        return model.to(dtype=dtype).eval()
