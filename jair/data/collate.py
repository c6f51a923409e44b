"""Examples as the tensors that a model takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from jair.data.examples import Example
from jair.data.images import random_crop, to_pixels

IGNORED = -100
_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(r"\b(left|right)(?=(?:most|hand|side|wards?)?\b)", re.IGNORECASE)


class Collator:
    """Tokenises, resizes, pads. A text that is too long is cut at its end.

    Args:
        tokenizer: of transformers. image_size, max_text_length, max_target_length: as in JAIRConfig.
        train: crop and flip when a seed is given. A flip swaps "left" and "right" in all words.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_size: int,
        max_text_length: int,
        max_target_length: int,
        *,
        train: bool = True,
    ) -> None:
        self.tokenizer, self.image_size, self.train = tokenizer, image_size, train
        self.max_text_length, self.max_target_length = max_text_length, max_target_length

    def __call__(self, examples: Sequence[Example], seed: int | None = None) -> dict[str, torch.Tensor]:
        """A batch: pixel_values [B,3,S,S], input_ids [B,L], attention_mask bool [B,L], labels [B,T].

        labels end with the end-of-sequence word; padding is -100. With a seed each example is augmented by
        random numbers of its own; without, by none.

        Raises:
            ValueError: there are no examples.
        """
        if not examples:
            raise ValueError("examples: expected at least one, got none")
        pixels, prompts, answers = [], [], []
        for index, example in enumerate(examples):
            image, prompt, answer = example.image, example.prompt, example.answer
            if seed is not None and self.train:
                generator = np.random.default_rng([seed, index])
                image = random_crop(image, generator)
                if generator.random() < 0.5:
                    image, prompt, answer = flipped(image, prompt, answer)
            pixels.append(to_pixels(image, self.image_size))
            prompts.append(self.words(prompt, self.max_text_length))
            answers.append(self.words(answer, self.max_target_length))
        pad = self.tokenizer.pad_token_id
        input_ids = _padded(prompts, pad)
        lengths = torch.tensor([len(words) for words in prompts])
        return {
            "pixel_values": torch.stack(pixels),
            "input_ids": input_ids,
            "attention_mask": torch.arange(input_ids.shape[1]) < lengths[:, None],
            "labels": _padded(answers, IGNORED),
        }

    def words(self, text: str, longest: int) -> list[int]:
        """Numbers of the words, the end-of-sequence word last."""
        words = self.tokenizer(text, add_special_tokens=False).input_ids
        return [*words[: longest - 1], self.tokenizer.eos_token_id]


def _padded(rows: list[list[int]], pad: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows], dtype=torch.long)


def flipped(image: Any, prompt: str, answer: str) -> tuple[Any, str, str]:
    """The mirror image, and its words: what was left is right."""
    mirrored = image.transpose(0)  # Pillow's FLIP_LEFT_RIGHT
    return mirrored, swap_sides(prompt), swap_sides(answer)


def swap_sides(text: str) -> str:
    """The text with "left" and "right" exchanged."""

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        other = _SIDES[word.lower()]
        if word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return _SIDE.sub(swap, text)
