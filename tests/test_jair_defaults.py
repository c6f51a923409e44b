"""What `generate` does where nothing is said; other dtypes, empty batches, options out of range."""

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


def test_words_may_be_int32() -> None:
    model, (pixels, words, labels) = small(), batch()
    labels[0, 2:] = -100
    want, got = (model(pixels, w, labels=y) for w, y in ((words, labels), (words.int(), labels.int())))
    assert torch.equal(got.loss, want.loss)
    assert torch.equal(got.logits, want.logits)
    given = model(pixels, words.int(), decoder_input_ids=model.shift_right(labels).int(), labels=labels.int())
    assert torch.equal(given.loss, want.loss)
    assert torch.equal(model.generate(pixels, words.int()), model.generate(pixels, words))


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 3, "use_cache": False}, {"do_sample": True}]
)
def test_no_samples_have_no_answers(options: dict[str, bool]) -> None:
    pixels, words, _ = batch(2)
    answers = small().generate(pixels[:0], words[:0], **options)  # type: ignore[arg-type]
    assert answers.shape[0] == 0
    assert answers.dtype == torch.int64


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("length_penalty", float("nan"), ValueError, "expected a finite number, got nan"),
        ("length_penalty", "x", TypeError, "expected a number, got str"),
        ("temperature", 0.0, ValueError, "expected a finite number > 0, got 0.0"),
        ("top_k", 0, ValueError, "expected an int >= 1, got 0"),
        ("top_p", 1.5, ValueError, "expected at most 1, got 1.5"),
        ("use_cache", "no", TypeError, "expected a bool, got str"),
    ],
)
def test_options_are_checked_also_where_they_are_not_used(
    beams: int, option: str, value: object, error: type[Exception], message: str
) -> None:
    pixels, words, _ = batch(1)
    with pytest.raises(error, match=f"^{option}: {message}$"):
        small().generate(pixels, words, num_beams=beams, **{option: value})  # type: ignore[arg-type]


def test_labels_of_another_batch_are_named() -> None:
    model, (pixels, words, labels) = small(), batch()
    with pytest.raises(ValueError, match=r"^labels: expected a batch of 3 like input_ids, got 2$"):
        model(pixels, words, labels=labels[:2])
    with pytest.raises(ValueError, match=r"^decoder_input_ids: expected a batch of 3 like input_ids, got 2$"):
        model(pixels, words, decoder_input_ids=labels[:2])
