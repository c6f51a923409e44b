"""What can be guessed without understanding a picture: a bound from below for any model's accuracy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from jair.data.examples import Example

NEIGHBOURS = 25
_BINS = 4  # of each colour channel


def blind(train: Iterable[Example], test: Iterable[Example]) -> float:
    """Accuracy of the answer that was most frequent to the same question, or to its kind if it is new."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for key in _keys(example):
            counts[key][example.answer] += 1
    return _accuracy(
        test, lambda example: next((counts[k] for k in _keys(example) if k in counts), Counter())
    )


def bag_of_image(train: Iterable[Example], test: Iterable[Example]) -> float:
    """Accuracy of the answer that is most frequent, to the same question or to its kind, among the NEIGHBOURS
    pictures whose colour histograms are nearest.
    """
    shown: dict[str, list[tuple[np.ndarray, str]]] = defaultdict(list)
    for example in train:
        histogram = _histogram(example)
        for key in _keys(example):
            shown[key].append((histogram, example.answer))
    stacked = {key: np.stack([row for row, _ in rows]) for key, rows in shown.items()}

    def votes(example: Example) -> Counter[str]:
        key = next((k for k in _keys(example) if len(shown.get(k, ())) >= NEIGHBOURS), _keys(example)[-1])
        if key not in stacked:
            return Counter()
        distance = np.abs(stacked[key] - _histogram(example)).sum(1)
        return Counter(shown[key][i][1] for i in np.argsort(distance, kind="stable")[:NEIGHBOURS])

    return _accuracy(test, votes)


def _accuracy(test: Iterable[Example], votes: object) -> float:
    right = count = 0
    for example in test:
        found = votes(example)  # type: ignore[operator]
        right += bool(found) and found.most_common(1)[0][0] == example.answer
        count += 1
    if not count:
        raise ValueError("test: expected at least one example, got none")
    return right / count


def _keys(example: Example) -> tuple[str, ...]:
    """The question, its first words, its kind: from narrow to wide."""
    return example.prompt, " ".join(example.prompt.split()[:2]), example.group


def _histogram(example: Example) -> np.ndarray:
    pixels = np.asarray(example.image.convert("RGB").resize((32, 32))).reshape(-1, 3) // (256 // _BINS)
    index = (pixels[:, 0] * _BINS + pixels[:, 1]) * _BINS + pixels[:, 2]
    return np.bincount(index, minlength=_BINS**3) / len(index)
