"""The rules of `jair.AdaptiveSampler`: what each starts with, learns from a step, and makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jair.sampler import AdaptiveSampler

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
ODM_SMOOTHING = 0.9
EXP3_SCALE = 10.0
DOREMI_STEP, DOREMI_SMOOTHING = 1.0, 1e-4


def _exploration(count: int, step: int) -> float:
    return min(1 / count, math.sqrt(math.log(count) / (count * max(step, 1))))


def _softmax(s: AdaptiveSampler, logits: Array) -> Array:
    """Among the sources that are left: beside one that has ended they might all be 0."""
    logits = np.where(s.ended, -np.inf, logits)
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _uniform(s: AdaptiveSampler) -> Array:
    return np.full(len(s.sizes), 1 / len(s.sizes))


def _nothing(s: AdaptiveSampler, *_: Any) -> None:
    pass


def _learn_difficulty(s: AdaptiveSampler, loss: Array, seen: Mask, _: Array) -> None:
    if s.step <= s.warmup_steps:
        s.total += loss
        s.seen += seen
        return
    known = s.seen > 0
    start = np.divide(s.total, s.seen, out=np.full_like(loss, np.nan), where=known)
    before = np.where(np.isnan(s.average), start, s.average)
    s.average = np.where(seen & known, s.smoothing * before + (1 - s.smoothing) * loss, before)


def _weigh_difficulty(s: AdaptiveSampler) -> Array:
    start = np.divide(s.total, s.seen, out=np.ones_like(s.total), where=s.seen > 0)
    difficulty = np.where(
        np.isnan(s.average) | (start <= 0), 1.0, s.average / np.where(start > 0, start, 1.0)
    )
    logs = np.log(np.maximum(difficulty, np.finfo(np.float64).tiny)) / s.temperature
    return (1 - s.epsilon) * _softmax(s, logs) + s.epsilon / len(s.sizes)


def _start_odm(s: AdaptiveSampler) -> None:
    s.reward = np.full(len(s.sizes), -np.inf)  # log R


def _learn_odm(s: AdaptiveSampler, loss: Array, seen: Mask, _: Array) -> None:
    new = np.logaddexp(s.reward + math.log(ODM_SMOOTHING), loss + math.log(1 - ODM_SMOOTHING))
    s.reward = np.where(seen, new, s.reward)


def _weigh_odm(s: AdaptiveSampler) -> Array:
    if np.isinf(s.reward[~s.ended]).all():
        return _uniform(s)
    explore = _exploration(len(s.sizes), s.step)
    return (1 - len(s.sizes) * explore) * _softmax(s, s.reward) + explore


def _learn_exp3(s: AdaptiveSampler, loss: Array, seen: Mask, p: Array) -> None:
    safe = np.where(p > 0, p, 1.0)
    s.reward += np.where(seen, loss / EXP3_SCALE / safe, 0.0)


def _weigh_exp3(s: AdaptiveSampler) -> Array:
    if s.step <= s.warmup_steps:
        return _uniform(s)
    explore, before = _exploration(len(s.sizes), s.step), _exploration(len(s.sizes), s.step - 1)
    return (1 - len(s.sizes) * explore) * _softmax(s, before * s.reward) + explore


def _learn_doremi(s: AdaptiveSampler, excess: Array, seen: Mask, _: Array) -> None:
    s.reward = s.reward + DOREMI_STEP * np.where(seen, np.maximum(excess, 0.0), 0.0)
    s.reward = np.log(_mixed_doremi(s))


def _mixed_doremi(s: AdaptiveSampler) -> Array:
    return (1 - DOREMI_SMOOTHING) * _softmax(s, s.reward) + DOREMI_SMOOTHING / len(s.sizes)


def _weigh_doremi(s: AdaptiveSampler) -> Array:
    return np.exp(s.reward) if s.step else _uniform(s)


def _weigh_temperature(s: AdaptiveSampler) -> Array:
    return _softmax(s, np.log(s.sizes) / s.temperature)


Rule = tuple[Callable[..., None], Callable[..., None], Callable[["AdaptiveSampler"], Array]]
# What each rule starts with, learns from a step, and makes of it.
RULES: dict[str, Rule] = {
    "difficulty": (_nothing, _learn_difficulty, _weigh_difficulty),
    "odm": (_start_odm, _learn_odm, _weigh_odm),
    "odm_exp3": (_nothing, _learn_exp3, _weigh_exp3),
    "doremi": (_nothing, _learn_doremi, _weigh_doremi),
    "temperature": (_nothing, _nothing, _weigh_temperature),
    "uniform": (_nothing, _nothing, _uniform),
}
