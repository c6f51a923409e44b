"""Which numbers stand for words: bytes, a T5 tokeniser from a folder, or one trained on the data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jair._saved import read_config
from jair.encoders import optional_import

FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model")  # of T5's, ByT5's and our tokenizers


def bytes_tokenizer() -> Any:
    """ByT5's: a word for each byte; 384 words, 0 pads and 1 ends."""
    return optional_import("transformers").ByT5Tokenizer()


def load_tokenizer(checkpoint: Path) -> Any:
    """The tokenizer saved beside the model; without one, ByT5's bytes, if the vocabulary has their size.

    Raises:
        OSError: there is no model. ValueError: its configuration is damaged, or there is neither a tokenizer
            nor a vocabulary of bytes.
    """
    if (checkpoint / "tokenizer_config.json").exists():
        return read_tokenizer(checkpoint)
    config = read_config(checkpoint)
    tokenizer = bytes_tokenizer()
    if config.vocab_size != len(tokenizer):
        raise ValueError(
            f"{checkpoint}: expected a tokenizer beside the model, or vocab_size = {len(tokenizer)} "
            f"for ByT5's bytes, got vocab_size = {config.vocab_size}"
        )
    return tokenizer


def read_tokenizer(place: str | Path) -> Any:
    """The tokenizer of a folder or of a hub name.

    Raises:
        ValueError: there is none. In a folder of T5's weights alone transformers would make an empty one.
    """
    expected = "tokenizer: expected a folder or hub name with a tokenizer"
    if Path(place).is_dir() and not any((Path(place) / name).exists() for name in FILES):
        raise ValueError(f"{expected}, got {place} with none of {', '.join(FILES)}")
    try:
        return optional_import("transformers").AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{expected}, got {str(place)!r} ({reason})") from error


def word_count(tokenizer: Any) -> int:
    """How many words a model needs for it: one more than the highest of their numbers."""
    return int(max(tokenizer.get_vocab().values())) + 1


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
