"""Answers that are right or wrong: GQA's exact match and SNLI-VE's labels."""

from __future__ import annotations

from collections.abc import Sequence

LABELS = ("entailment", "neutral", "contradiction")


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction is one of the answers, up to case, outer spaces and a final period; else 0.0.

    Raises:
        TypeError: answers is a str, whose characters would be taken for answers.
    """
    if isinstance(answers, str):
        raise TypeError("answers: expected a sequence of str, got str")
    return float(_plain(prediction) in map(_plain, answers))


def label_match(prediction: str, answers: Sequence[str]) -> float:
    """As `exact_match`. A prediction that is no label is wrong like any other: nothing is guessed for it."""
    return exact_match(prediction, answers)


def is_label(prediction: str) -> bool:
    """Whether it is one of SNLI-VE's three labels."""
    return _plain(prediction) in LABELS


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".").rstrip()
