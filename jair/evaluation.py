"""A model's answers to a whole split, scored, and written as the benchmarks want them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jair import metrics
from jair._checks import device as check_device
from jair._checks import whole_numbers
from jair._files import write_text
from jair.data.collate import Collator
from jair.data.examples import Example
from jair.generation import evaluating
from jair.metrics.answers import is_label
from jair.metrics.captions import scorers
from jair_kernels import _checks as check

if TYPE_CHECKING:
    from jair.data.sources import Source
    from jair.model import JAIR


@dataclass(frozen=True)
class Prediction:
    """An answer and what it is worth: its VQA accuracy, 1 or 0 for right or wrong, a caption's CIDEr-D; None
    where no right answer is published.
    """

    id: str
    text: str
    group: str
    score: float | None


def evaluate(
    model: JAIR,
    tokenizer: Any,
    source: Source,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Let the model answer each example of a source once, and score the answers by the source's metric.

    Answers are generated word by word, greedily or by beam search, in evaluation mode; beyond rounding none
    depends on what else is in its batch. The model is moved to the device and left in the mode it was in.

    Args:
        model, tokenizer: what to ask. source: a split, opened.
        batch_size: examples at a time. limit: evaluate the first ones only.
        max_new_tokens: longest answer in words of the tokenizer; None = max_target_length.
        num_beams: 1 = greedy. device: where to compute.
        progress: called after each batch with the number of examples answered so far.

    Returns:
        "source", "metric", "examples" (how many were answered), "skipped" (how many could not be read), the
        scores of `scores`, "groups" (the same by `Example.group`, if there are any), and "predictions", a
        list of `Prediction`. For captions examples and groups are images. Of a source that is not `answered`
        there are no scores.

    Raises:
        TypeError, ValueError: an option out of range, by name, or a source without examples.
        ImportError: captions are to be scored and pycocoevalcap is missing.
    """
    whole_numbers(batch_size=batch_size, num_beams=num_beams)
    if limit is not None:
        whole_numbers(limit=limit)
    check.choice("source.metric", source.metric, tuple(_SUBMISSIONS))
    if source.metric == "caption":
        scorers()  # if they are missing, before the work
    check_device("device", device)
    config = model.config
    collate = Collator(
        tokenizer, config.image_size, config.max_text_length, config.max_target_length, train=False
    )
    longest = config.max_target_length if max_new_tokens is None else max_new_tokens
    model.to(device)
    examples: list[_Asked] = []
    answers: list[str] = []
    with evaluating(model):
        for batch in _batches(source.evaluation(limit), batch_size):
            inputs = {name: value.to(device) for name, value in collate(batch).items()}
            words = model.generate(
                inputs["pixel_values"],
                inputs["input_ids"],
                inputs["attention_mask"],
                longest,
                num_beams=num_beams,
            )
            answers += [text.strip() for text in tokenizer.batch_decode(words, skip_special_tokens=True)]
            examples += [_Asked(example.id, example.group, tuple(example.answers)) for example in batch]
            if progress is not None:
                progress(len(answers))
    if not answers:
        got = f"none ({source.skipped.total} skipped{source.skipped.first})"
        raise ValueError(f"source: expected at least one example in {source.name}, got {got}")
    if source.answered:
        summary, predictions = scores(source.metric, examples, answers)
    else:
        pairs = zip(examples, answers, strict=True)
        summary, predictions = {}, [Prediction(asked.id, text, asked.group, None) for asked, text in pairs]
    return {
        "source": source.name,
        "metric": source.metric,
        "examples": len(predictions),
        "skipped": source.skipped.total,
        **summary,
        "groups": _by_group(source.metric, predictions),
        "predictions": predictions,
    }


@dataclass(frozen=True)
class _Asked:
    """What scoring needs of an example: all but its image, so that memory stays small."""

    id: str
    group: str
    answers: tuple[str, ...]


def _batches(examples: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while batch := list(islice(examples, size)):
        yield batch


def scores(
    metric: str, examples: Sequence[Any], answers: Sequence[str]
) -> tuple[dict[str, float], list[Prediction]]:
    """Score answers to examples (their id, group and answers are read).

    "vqa", "exact" and "label" give "accuracy", the mean in [0,1]; "label" also "no_label", the share of
    answers that are none of SNLI-VE's three labels (they count as wrong). "caption" gives "cider" and "bleu1"
    to "bleu4"; of an image that comes several times the first answer counts.
    """
    if metric == "caption":
        return _caption_scores(examples, answers)
    score = _SCORES[metric]
    each = [score(answer, example.answers) for example, answer in zip(examples, answers, strict=True)]
    predictions = [
        Prediction(example.id, answer, example.group, value)
        for example, answer, value in zip(examples, answers, each, strict=True)
    ]
    summary = {"accuracy": _mean(each)}
    if metric == "label":
        summary["no_label"] = _mean(float(not is_label(answer)) for answer in answers)
    return summary, predictions


def _caption_scores(
    examples: Sequence[Any], answers: Sequence[str]
) -> tuple[dict[str, float], list[Prediction]]:
    first: dict[str, tuple[Any, str]] = {}
    for example, answer in zip(examples, answers, strict=True):
        first.setdefault(example.id, (example, answer))
    written = [example.answers for example, _ in first.values()]
    result = metrics.caption_scores([answer for _, answer in first.values()], written)
    each = result.pop("cider_each")
    predictions = [
        Prediction(example.id, answer, example.group, score)
        for (example, answer), score in zip(first.values(), each, strict=True)
    ]
    return result, predictions


def _by_group(metric: str, predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    name = "cider" if metric == "caption" else "accuracy"
    groups: dict[str, list[float]] = {}
    for prediction in predictions:
        if prediction.group and prediction.score is not None:
            groups.setdefault(prediction.group, []).append(prediction.score)
    return {group: {name: _mean(values), "examples": len(values)} for group, values in sorted(groups.items())}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def submission(metric: str, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions as the benchmark of this metric takes them: a list of objects.

        "vqa"      VQAv2           {"question_id": int, "answer": str}
        "exact"    GQA             {"questionId": str, "prediction": str}
        "label"    SNLI-VE         {"pairID": str, "prediction": str}
        "caption"  COCO captions   {"image_id": int, "caption": str}

    SNLI-VE has no server; its keys are our decision. An ID that is not written as a number is, as "007",
    stays a string.
    """
    key, value, number = _SUBMISSIONS[metric]
    return [{key: _number(p.id) if number else p.id, value: p.text} for p in predictions]


def _number(name: str) -> int | str:
    return int(name) if name.isdecimal() and str(int(name)) == name else name


def write_submission(path: Path, metric: str, predictions: Sequence[Prediction]) -> None:
    """Write `submission` as JSON, whole or not at all."""
    write_text(path, json.dumps(submission(metric, predictions), ensure_ascii=False) + "\n")


_SCORES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "vqa": metrics.vqa_accuracy,
    "exact": metrics.exact_match,
    "label": metrics.label_match,
}
_SUBMISSIONS = {
    "vqa": ("question_id", "answer", True),
    "exact": ("questionId", "prediction", False),
    "label": ("pairID", "prediction", False),
    "caption": ("image_id", "caption", True),
}
