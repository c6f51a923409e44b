"""Which numbers stand for words: bytes, a T5 tokeniser from a folder, or one trained on the data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jair.config import JAIRConfig
from jair.encoders import optional_import


def bytes_tokenizer() -> Any:
    """ByT5's: a word for each byte; 384 words, 0 pads and 1 ends."""
    return optional_import("transformers").ByT5Tokenizer()


def load_tokenizer(checkpoint: Path) -> Any:
    """The tokenizer saved beside the model; without one, ByT5's bytes, if the vocabulary has their size.

    Raises:
        OSError: there is no model. ValueError: there is neither a tokenizer nor a vocabulary of bytes.
    """
    if (checkpoint / "tokenizer_config.json").exists():
        return optional_import("transformers").AutoTokenizer.from_pretrained(checkpoint)
    config = JAIRConfig.from_dict(json.loads((checkpoint / "config.json").read_text()))
    tokenizer = bytes_tokenizer()
    if config.vocab_size != len(tokenizer):
        raise ValueError(
            f"{checkpoint}: expected a tokenizer beside the model, or vocab_size = {len(tokenizer)} "
            f"for ByT5's bytes, got vocab_size = {config.vocab_size}"
        )
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> Any:
    """A byte-level BPE of the texts with at most vocab_size words; 0 pads, 1 ends.

    All bytes are words, so that it can write what the texts did not have.

    Raises:
        ValueError: vocab_size is less than the 256 bytes and the two others.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size: expected an int >= 258, got {vocab_size}")
    library, transformers = optional_import("tokenizers"), optional_import("transformers")
    bytes_of = library.pre_tokenizers.ByteLevel
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = bytes_of(add_prefix_space=True)
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=sorted(bytes_of.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>")
