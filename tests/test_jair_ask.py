"""Questions asked on the command line: the words that training and `jair eval` read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer", reason="the extra 'models' is not installed")
pytest.importorskip("transformers", reason="the extra 'models' is not installed")
from typer.testing import CliRunner

from jair import JAIR, JAIRConfig
from jair.commands import app
from jair.data.collate import Collator
from jair.data.tokenizers import train_tokenizer

SMALL = {"dim": 16, "num_heads": 2, "mlp_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "image_size": 32}
LONGEST = 8


def jair(*words: str | Path) -> str:
    outcome = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose tokenizer, made from the data, adds no end-of-sequence word, and a picture."""
    from PIL import Image

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["what is it?", "a red star"], 300)
    JAIR(
        JAIRConfig.preset("tiny", **SMALL, vocab_size=len(tokenizer), max_text_length=LONGEST)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path


def asked(folder: Path, command: str, prompt: str) -> tuple[str | Path, ...]:
    of_command = {
        "generate": ("generate", folder),
        "report": ("report", "--out", folder / "out", "--attention", folder),
    }[command]
    return (*of_command, "--image", folder / "photo.png", "--prompt", prompt)


@pytest.mark.parametrize("command", ["generate", "report"])
@pytest.mark.parametrize("prompt", ["what is it?", ""])
def test_a_prompt_is_read_as_in_training(
    folder: Path, command: str, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    if command == "report":
        pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    read: list[tuple[list[list[int]], list[list[bool]]]] = []
    generate = JAIR.generate

    def noted(self: JAIR, pixels: Any, words: Any, mask: Any, *more: Any, **options: Any) -> torch.Tensor:
        read.append((words.tolist(), mask.tolist()))
        return generate(self, pixels, words, mask, *more, **options)

    monkeypatch.setattr(JAIR, "generate", noted)
    jair(*asked(folder, command, prompt))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = Collator(tokenizer, 32, LONGEST, LONGEST, train=False).words(prompt, LONGEST)
    assert words[-1] == tokenizer.eos_token_id
    assert read == [([words], [[True] * len(words)])]


@pytest.mark.parametrize("command", ["generate", "report"])
def test_a_prompt_that_would_be_cut_is_refused(folder: Path, command: str) -> None:
    if command == "report":
        pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    with pytest.raises(ValueError, match=r"^--prompt: expected at most 7 words of the tokenizer, got 8$"):
        jair(*asked(folder, command, "1234567"))
    jair(*asked(folder, command, "123456"))
