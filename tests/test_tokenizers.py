"""Tokenizers beside a model or in a folder: what is damaged or missing is told with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the extra 'models' is not installed")

from jair import JAIRConfig
from jair.data.tokenizers import load_tokenizer, read_tokenizer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: expected JSON, got what is none ("),
        ("[]", "config.json: expected a JSON object, got list"),
        ('{"dim": 16}', "config.json: expected every size, got no image_size, vocab_size, num_heads, "),
    ],
)
def test_a_damaged_configuration_is_told_by_its_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/{re.escape(message)}"):
        load_tokenizer(tmp_path)


def test_bytes_are_meant_where_the_vocabulary_has_their_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(JAIRConfig.preset("tiny").to_dict()))
    assert load_tokenizer(tmp_path)("a", add_special_tokens=False).input_ids == [ord("a") + 3]
    (tmp_path / "config.json").write_text(json.dumps(JAIRConfig.preset("tiny", vocab_size=385).to_dict()))
    with pytest.raises(ValueError, match=r"expected a tokenizer beside the model, .* got vocab_size = 385$"):
        load_tokenizer(tmp_path)


def test_a_place_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    expected = "tokenizer: expected a folder or hub name with a tokenizer, got"
    with pytest.raises(ValueError, match=re.escape(f"{expected} {tmp_path} with none of tokenizer.json, ")):
        read_tokenizer(tmp_path)
    nowhere = tmp_path / "none"
    with pytest.raises(ValueError, match=re.escape(f"{expected} '{nowhere}' (")) as caught:
        read_tokenizer(nowhere)
    assert "\n" not in str(caught.value)
