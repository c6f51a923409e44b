"""Answers with CUDA graphs: at batch 1 a GPU waits for launches, and a graph launches all at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from jair._checks import whole_numbers
from jair.decoder import DecodingState
from jair.generation import longest_answer
from jair.model import JAIR

Tensor = torch.Tensor


class GraphedGenerate:
    """Greedy `JAIR.generate` for inputs of one shape, recorded once: one graph encodes, one says a word.

        answer = GraphedGenerate(model)
        words = answer(pixel_values, input_ids, attention_mask)

    Answers are those of `model.generate` for the same texts, padded. Weights may change in place; a model
    that is moved or cast needs a new recording. On a CPU, which has no graphs, the same steps run one by one.

    Args:
        model: in evaluation mode, on its device. batch_size: B. text_length: L, to which texts are padded;
            None = max_text_length. max_new_tokens: as in `generate`.

    Raises:
        TypeError, ValueError: an argument out of range, by name.
    """

    def __init__(
        self,
        model: JAIR,
        *,
        batch_size: int = 1,
        text_length: int | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        if not isinstance(model, JAIR):
            raise TypeError(f"model: expected a JAIR, got {type(model).__name__}")
        if model.training:
            raise ValueError("model: expected one in evaluation mode, got one in training mode")
        text_length = model.config.max_text_length if text_length is None else text_length
        whole_numbers(batch_size=batch_size, text_length=text_length)
        longest = model.config.max_text_length
        if text_length > longest:
            raise ValueError(f"text_length: expected at most max_text_length = {longest}, got {text_length}")
        self.model, self.steps = model, longest_answer(max_new_tokens, model.config.max_target_length)
        weight, size = model.embedding.weight, model.config.image_size
        device = weight.device
        self.pixel_values = torch.zeros(batch_size, 3, size, size, device=device, dtype=weight.dtype)
        self.input_ids = torch.full((batch_size, text_length), model.config.pad_token_id, device=device)
        self.mask = torch.ones(batch_size, text_length, dtype=torch.bool, device=device)
        self.word = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.state: DecodingState
        with torch.no_grad():
            self._encode = _recorded(self._encode_step, device)
            self._say = _recorded(self._say_step, device)

    @torch.no_grad()
    def __call__(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Answers [B, at most 1 + max_new_tokens]; arguments as in `JAIR.forward`, texts up to text_length.

        Raises:
            TypeError, ValueError: as `JAIR.forward`; another batch size, or a longer text.
        """
        mask = self.model.check_inputs(pixel_values, input_ids, attention_mask)
        (batch, longest), length = self.input_ids.shape, input_ids.shape[1]
        if len(input_ids) != batch or length > longest:
            raise ValueError(
                f"input_ids: expected shape [{batch}, 1 to {longest}], got {list(input_ids.shape)}"
            )
        config = self.model.config
        self.pixel_values.copy_(pixel_values)
        self.input_ids.fill_(config.pad_token_id)[:, :length] = input_ids
        self.mask.fill_(False)[:, :length] = mask
        self._encode()
        self.word.fill_(config.pad_token_id)
        words, done = [self.word.clone()], torch.zeros_like(self.word, dtype=torch.bool)
        for _ in range(self.steps):
            self._say()
            self.word.masked_fill_(done, config.pad_token_id)
            words.append(self.word.clone())
            done |= self.word == config.eos_token_id
            if done.all():
                break
        return torch.stack(words, dim=1)

    def _encode_step(self) -> None:
        tokens, mask = self.model.encode(self.pixel_values, self.input_ids, self.mask)
        self.state = self.model.decoder.start(tokens, mask, self.steps, beams=1)

    def _say_step(self) -> None:
        hidden = self.model.decoder.step(self.model.embed(self.word), self.state)
        self.word.copy_(self.model.lm_head(hidden).float().argmax(dim=-1))


def _recorded(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """On a GPU a graph's replay; what the step assigns stays at the addresses of the recording."""
    if device.type != "cuda":
        step()
        return step
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        step()  # compiles and chooses kernels, which a recording must not
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()  # a recording computes nothing, and the next one reads what this one leaves
    return graph.replay
