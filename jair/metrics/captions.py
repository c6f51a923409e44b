"""CIDEr-D and BLEU of captions, by the scorers of COCO's caption evaluation (pycocoevalcap)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jair.encoders import optional_import

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'"})
_NEGATION = re.compile(r"(?<=[^\W\d_])n't\b")
_CLITIC = re.compile(r"(?<=[^\W\d_])'(s|re|ve|ll|d|m)\b")
_TOKEN = re.compile(
    r"n't\b|'(?:s|re|ve|ll|d|m)\b"  # what was split off a word
    r"|\d+(?:[.,:]\d+)+"  # 3.5, 1,000, 5:30
    r"|[^\W_]+(?:[-/][^\W_]+|'[^\W\d_]+)*"  # words, black-and-white, o'clock
    r"|[$%&#+=]"
)


def tokenize(caption: str) -> list[str]:
    """The words of a caption, lower case, much as the Penn Treebank's tokenizer gives them, no punctuation.

    COCO's evaluation runs Stanford's tokenizer, a Java program; this is a rule in Python, the same everywhere
    (our decision). Both keep numbers and hyphened words, split off n't, 's, 're, 've, 'll, 'd and 'm, and
    part "cannot". They differ on brackets, of which COCO's keeps "-lrb-" as a word, on the final period of
    abbreviations, and on web addresses.
    """
    text = _CLITIC.sub(r" '\1", _NEGATION.sub(" n't", caption.lower().translate(_QUOTES)))
    return _TOKEN.findall(re.sub(r"\bcannot\b", "can not", text))


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Score one caption for each image against all that people wrote.

    The n-grams' weights in CIDEr-D come from the references given here: with a single image all are 0, and
    scores of different sets of images do not compare.

    Args:
        predictions: a caption for each image. references: the captions of each image, at least one.

    Returns:
        "cider" (10 = the references themselves, if all are alike), "bleu1" to "bleu4" of the corpus in [0,1],
        and "cider_each", a list of each image's CIDEr-D.

    Raises:
        TypeError: a str where a sequence of them belongs.
        ValueError: no image, other numbers of predictions than references, or an image without references.
        ImportError: pycocoevalcap is missing.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        name = "predictions" if isinstance(predictions, str) else "references"
        raise TypeError(f"{name}: expected a sequence with an entry for each image, got str")
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"predictions: expected one for each image and at least one image, got {len(predictions)} for "
            f"{len(references)}"
        )
    for index, captions in enumerate(references):
        if isinstance(captions, str):
            raise TypeError(f"references: expected a sequence of captions for each image, got str of {index}")
        if not captions:
            raise ValueError(f"references: expected at least one caption of each image, got none of {index}")
    said = {i: [" ".join(tokenize(caption))] for i, caption in enumerate(predictions)}
    written = {i: [" ".join(tokenize(c)) for c in captions] for i, captions in enumerate(references)}
    of_cider, of_bleu = scorers()
    cider, each = of_cider().compute_score(written, said)
    bleu, _ = of_bleu(4).compute_score(written, said, 0)
    return {
        "cider": float(cider),
        **{f"bleu{n}": float(value) for n, value in enumerate(bleu, start=1)},
        "cider_each": [float(value) for value in each],
    }


def scorers() -> tuple[Any, Any]:
    """pycocoevalcap's classes Cider and Bleu.

    Raises:
        ImportError: it is missing.
    """
    cider = optional_import("pycocoevalcap.cider.cider", "train").Cider
    return cider, optional_import("pycocoevalcap.bleu.bleu", "train").Bleu
