"""VQA accuracy by the official rules: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jair.metrics.contractions import CONTRACTIONS

ANSWERS = 10  # people asked about each question
ENOUGH = 3  # of them agreeing make an answer right

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)
_PERIOD = re.compile(r"\.(?!\d)", re.ASCII)
_MOST_PERIODS = 32  # the official code hands re.UNICODE, 32, to where re.sub expects a count
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_WORDS)}}
_ARTICLES = ("a", "an", "the")


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The share of people who gave this answer, in [0,1], where three are enough.

        mean over i = 1..10 of min(1, |{j != i: answers[j] = prediction}| / 3)

    Both sides are stripped and, only if the ten answers are not all equal, normalised: punctuation, then
    lower case, number words, articles, contractions. If all are equal, case and punctuation count.

    Args:
        prediction: what the model said. answers: the ten answers of the annotation, in any order.

    Raises:
        TypeError: no strings. ValueError: not ten answers.
    """
    if not isinstance(prediction, str):
        raise TypeError(f"prediction: expected a str, got {type(prediction).__name__}")
    expected = f"answers: expected a sequence of {ANSWERS} str"
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise TypeError(f"{expected}, got {type(answers).__name__}")
    for answer in answers:
        if not isinstance(answer, str):
            raise TypeError(f"{expected}, got {type(answer).__name__} in it")
    if len(answers) != ANSWERS:
        raise ValueError(f"answers: expected {ANSWERS}, got {len(answers)}")
    prediction, answers = _on_one_line(prediction), [_on_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    matches = sum(answer == prediction for answer in answers)
    # Leaving out one of those that match leaves one less.
    without_match, without_other = min(1, (matches - 1) / ENOUGH), min(1, matches / ENOUGH)
    return (matches * without_match + (ANSWERS - matches) * without_other) / ANSWERS


def normalise(text: str) -> str:
    """Drop punctuation and articles, write numbers as digits and contractions with their apostrophes."""
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """Each mark goes if the text has it beside a space, or has a number with a comma; else it is a space."""
    number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        goes = number or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)
