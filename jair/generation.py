"""Answers word by word: greedy, by sampling, or by beam search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from jair._checks import whole_numbers
from jair_kernels import _checks as check

if TYPE_CHECKING:
    from jair.model import JAIR

Tensor = torch.Tensor
STEPS = 16  # of an answer, if none are asked for
Choice = Callable[[Tensor], Tensor]  # logits [B,V] -> words [B]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, so that batch norms keep their statistics; each then as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def longest_answer(max_new_tokens: int | None, longest: int) -> int:
    """max_new_tokens, or for None 16, if so many fit in max_target_length.

    Raises:
        TypeError, ValueError: max_new_tokens out of range.
    """
    if max_new_tokens is None:
        return min(STEPS, longest)
    whole_numbers(max_new_tokens=max_new_tokens)
    if max_new_tokens > longest:
        raise ValueError(
            f"max_new_tokens: expected at most max_target_length = {longest}, got {max_new_tokens}"
        )
    return max_new_tokens


class NextWord:
    """Log-probabilities of the next word, from the fused tokens and the words so far.

    With use_cache the decoder keeps keys and values and sees one word a step; without, it reads all words
    again. Both agree to rounding.
    """

    def __init__(
        self,
        model: JAIR,
        tokens: Tensor,
        mask: Tensor | None,
        max_length: int,
        *,
        beams: int,
        use_cache: bool,
    ) -> None:
        self.model = model
        self.state = model.decoder.start(tokens, mask, max_length, beams) if use_cache else None
        self.tokens = tokens if use_cache else tokens.repeat_interleave(beams, dim=0)
        self.mask = mask if use_cache or mask is None else mask.repeat_interleave(beams, dim=0)

    def logits(self, words: Tensor) -> Tensor:
        """words [B,T] -> float32 [B,V] for word T."""
        model = self.model
        if self.state is not None:
            hidden = model.decoder.step(model.embed(words[:, -1]), self.state)
        else:
            hidden = model.decoder(model.embed(words), self.tokens, self.mask)[:, -1]
        return model.lm_head(hidden).float()

    def reorder(self, rows: Tensor) -> None:
        """Continue with these rows; they belong to the same samples."""
        if self.state is not None:
            self.state.reorder(rows)


def choose_greedily(logits: Tensor) -> Tensor:
    """The likeliest word."""
    return logits.argmax(dim=-1)


def sampler(temperature: float, top_k: int | None, top_p: float, generator: torch.Generator | None) -> Choice:
    """Draws from softmax(logits / temperature), from the top_k words, from the fewest that reach top_p.

    Raises:
        TypeError, ValueError: an option out of range, by name.
    """
    check.positive("temperature", temperature)
    check.positive("top_p", top_p)
    if top_p > 1:
        raise ValueError(f"top_p: expected at most 1, got {top_p}")
    if top_k is not None:
        whole_numbers(top_k=top_k)

    def choose(logits: Tensor) -> Tensor:
        sorted_logits, words = logits.sort(dim=-1, descending=True)
        least = torch.finfo(logits.dtype).tiny  # what is less would be 0 in their dtype
        sorted_logits = (sorted_logits - sorted_logits[:, :1]) / max(temperature, least)
        if top_k is not None:
            sorted_logits, words = sorted_logits[:, :top_k], words[:, :top_k]
        p = sorted_logits.softmax(dim=-1)
        p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0)  # the first word always stays
        return words.gather(1, torch.multinomial(p, 1, generator=generator)).squeeze(1)

    return choose


def extend(next_word: NextWord, words: Tensor, steps: int, choose: Choice, pad: int, eos: int) -> Tensor:
    """words [B,1] with up to `steps` more; after the end-of-sequence word comes padding."""
    done = torch.zeros(len(words), dtype=torch.bool, device=words.device)
    for _ in range(steps):
        chosen = choose(next_word.logits(words)).masked_fill(done, pad)
        words = torch.cat([words, chosen.unsqueeze(1)], dim=1)
        done = done | (chosen == eos)
        if done.all():
            break
    return words


def beam_search(
    next_word: NextWord, words: Tensor, steps: int, beams: int, length_penalty: float, pad: int, eos: int
) -> Tensor:
    """words [B,1] -> the best of `beams` continuations kept at each step, [B,T].

    A continuation's score is the sum of its log-probabilities; a finished one keeps its score and its place
    among the `beams`. In the end score / length^length_penalty decides.
    """
    batch, device = len(words), words.device
    words = words.repeat_interleave(beams, dim=0)
    first = torch.arange(batch, device=device).unsqueeze(1) * beams  # of each sample's rows
    scores = torch.full((batch, beams), float("-inf"), device=device)
    scores[:, 0] = 0  # at the start all beams are the same: only one counts
    done = torch.zeros(batch * beams, dtype=torch.bool, device=device)
    lengths = torch.zeros(batch * beams, device=device)
    for _ in range(steps):
        log_p = next_word.logits(words).log_softmax(dim=-1)
        only_pad = log_p.new_full(log_p.shape[1:], float("-inf"))
        only_pad[pad] = 0
        log_p = torch.where(done.unsqueeze(1), only_pad, log_p)
        total = scores.unsqueeze(2) + log_p.unflatten(0, (batch, beams))
        scores, best = total.flatten(1).topk(beams, dim=1)
        vocabulary = log_p.shape[1]
        rows, chosen = (first + best // vocabulary).flatten(), (best % vocabulary).flatten()
        words = torch.cat([words[rows], chosen.unsqueeze(1)], dim=1)
        next_word.reorder(rows)
        done, lengths = done[rows], lengths[rows]
        lengths = lengths + ~done
        done = done | (chosen == eos)
        if done.all():
            break
    ranks = scores / lengths.view(batch, beams) ** length_penalty
    return words[(first.squeeze(1) + ranks.argmax(dim=1))]
