"""What `generate` does where nothing is said, and pixels of another dtype than the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_jair_model import batch, small

from jair import JAIR, GraphedGenerate

pytest.importorskip("transformers", reason="the extra 'models' is not installed")


def talkative(**changes: object) -> JAIR:
    """It never ends an answer."""
    model = small(**changes)
    object.__setattr__(model.config, "eos_token_id", 10**6)
    return model


@pytest.mark.parametrize(("longest", "said"), [(8, 8), (16, 16), (40, 16)])
def test_an_answer_is_as_long_as_fits_and_16_at_most(longest: int, said: int) -> None:
    model = talkative(max_target_length=longest)
    pixels, words, _ = batch(2)
    answer = model.generate(pixels, words)
    assert answer.shape == (2, 1 + said)
    assert torch.equal(answer, model.generate(pixels, words, max_new_tokens=said))
    assert torch.equal(GraphedGenerate(model, batch_size=2)(pixels, words), answer)


def test_the_command_answers_with_short_targets(tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the extra 'models' is not installed")
    from PIL import Image
    from typer.testing import CliRunner

    from jair.commands import app

    small(vocab_size=384, max_text_length=64).save_pretrained(tmp_path)
    Image.new("RGB", (20, 30)).save(tmp_path / "photo.png")
    words = ["generate", str(tmp_path), "--image", str(tmp_path / "photo.png"), "--prompt", "x"]
    outcome = CliRunner().invoke(app, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pixels_have_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    model, (pixels, words, _) = JAIR.from_pretrained("tiny"), batch(1)
    message = f"^pixel_values: expected dtype float16 like the model's weights, got {str(dtype)[6:]}$"
    for call in (model.generate, model.encode):
        with pytest.raises(TypeError, match=message):
            call(pixels.to(dtype), words)
    tokens, _ = model.to(dtype).encode(pixels.to(dtype), words)
    assert tokens.dtype == dtype
    assert tokens.isfinite().all()


def test_autocast_takes_any_pixels_but_float64() -> None:
    model, (pixels, words, _) = small().float(), batch(1)
    with torch.autocast("cpu", torch.bfloat16):
        model.encode(pixels.bfloat16(), words)
        with pytest.raises(TypeError, match=r"pixel_values: expected dtype float32 like .*, got float64"):
            model.encode(pixels, words)
