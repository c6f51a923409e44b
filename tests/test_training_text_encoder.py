"""jair train with a T5 as text encoder: sizes and words are the checkpoint's; tokenizers that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("tensorboard", reason="the extra 'train' is not installed")
import transformers
from training_runs import arguments
from typer.testing import CliRunner

from jair import JAIR
from jair.commands import app
from jair.data.tokenizers import load_tokenizer, read_tokenizer, train_tokenizer, word_count
from jair.training import checkpoint
from jair.training.commands import _like_text_encoder, _model

WORDS = 280  # of the tokenizer
TEXTS = ["what colour is the small cube?", "how many spheres are there?"] * 20


def t5(folder: Path, vocab_size: int, tokenizer: bool = True) -> Any:
    """A T5 of width 32, and a tokenizer beside it."""
    settings = {
        "vocab_size": vocab_size,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 4,
    }
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**settings))
    model.save_pretrained(folder)
    if tokenizer:
        train_tokenizer(TEXTS, WORDS).save_pretrained(folder)
    return model


def train(out: Path, encoder: Path, *options: str) -> Any:
    """The command, without words about dim and vocab_size."""
    words = arguments(out, "--steps", "1", *options, text_encoder=str(encoder), num_heads=4)
    at = words.index("dim=16")
    return CliRunner().invoke(app, words[: at - 1] + words[at + 1 :])


def test_sizes_and_tokenizer_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    theirs = t5(tmp_path / "t5", 320)
    made = train(tmp_path / "run", tmp_path / "t5", "--freeze", "embedding")
    assert made.exit_code == 0, made.exception
    folder = checkpoint.resolve(tmp_path / "run")
    model = JAIR.from_pretrained(folder)
    assert (model.config.vocab_size, model.config.dim) == (320, 32)
    assert model.embedding.weight.equal(theirs.shared.weight)
    assert load_tokenizer(folder).get_vocab() == read_tokenizer(tmp_path / "t5").get_vocab()


@pytest.mark.parametrize(
    ("vocab_size", "tokenizer", "options", "message"),
    [
        (270, True, (), "vocab_size: expected at least 280 with the tokenizer '{}', got 270"),
        (320, True, ("--tokenizer", "bytes"), "vocab_size: expected 384 with the tokenizer 'bytes', got 320"),
        (
            320,
            False,
            (),
            "tokenizer: expected a folder or hub name with a tokenizer, got {} with none of tokenizer.json, "
            "tokenizer_config.json, spiece.model",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit(
    vocab_size: int, tokenizer: bool, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    t5(tmp_path / "t5", vocab_size, tokenizer)
    made = train(tmp_path / "run", tmp_path / "t5", *options)
    assert isinstance(made.exception, ValueError)
    assert str(made.exception) == message.format(tmp_path / "t5")
    assert not (tmp_path / "run").exists()


def test_the_highest_number_of_a_word_counts() -> None:
    """Also where numbers are left out, so that there are fewer words than numbers."""
    library = pytest.importorskip("tokenizers", reason="the extra 'models' is not installed")
    model = library.Tokenizer(library.models.WordLevel({"<pad>": 0, "</s>": 1, "cube": 500}, "<pad>"))
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>")
    assert (len(words), word_count(words)) == (3, 501)
    assert _model("tiny", {}, "FOLDER", words).vocab_size == 501
    message = r"^vocab_size: expected at least 501 with the tokenizer 'FOLDER', got 500$"
    with pytest.raises(ValueError, match=message):
        _model("tiny", {"vocab_size": 500}, "FOLDER", words)


def test_a_model_with_a_built_t5_reads_bytes_if_nothing_else_is_said(tmp_path: Path) -> None:
    settings = t5(tmp_path / "t5", 384, tokenizer=False).config.to_diff_dict()
    given = {"text_encoder": "t5", "text_encoder_config": settings}
    assert _like_text_encoder("tiny", given) == ({**given, "vocab_size": 384, "dim": 32}, "bytes")
