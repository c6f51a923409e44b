"""What a training run does, checked before it starts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jair._sampling_rules import RULES
from jair.config import JAIRConfig
from jair.data.sources import SourceSpec
from jair_kernels import _checks as check

STRATEGIES = ("ddp", "fsdp")
SCHEDULES = ("cosine", "constant")
SAMPLERS = tuple(rule for rule in RULES if rule != "doremi")
LISTS = ("sources", "val", "freeze")  # fields that are tuples of str


@dataclass(frozen=True)
class TrainPlan:
    """Settings of a run.

    model: what is trained. init: a saved model with whose weights it starts. sources, val: as
    `SourceSpec.parse` reads them; of val the split "val" is measured. steps: optimizer steps. batch_size:
    examples of a step over all processes. lr: the highest learning rate, reached after warmup_steps.
    schedule: "cosine" brings it down to 0 from there, "constant" keeps it, for a stage that others follow.
    sampler, temperature, epsilon: of AdaptiveSampler; "temperature" alone minds the weight of a source.
    freeze: modules that stay as they start, by their names in JAIR, as "image_encoder".
    accumulate: parts in which a process takes its share of a batch. clip: of the gradient's norm; 0 = none.
    ema: decay of a moving average of the weights, which is then validated and a checkpoint's model; 0 = none.
    tokenizer: "bytes", "data" (trained on the sources), "init" (the saved model's) or a folder.
    keep: checkpoints. most_bad: steps in a row without a finite loss before giving up.
    """

    model: JAIRConfig
    sources: tuple[str, ...]
    val: tuple[str, ...] = ()
    init: str | None = None
    freeze: tuple[str, ...] = ()
    steps: int = 1000
    batch_size: int = 64
    lr: float = 1e-3
    warmup_steps: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.05
    clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.0
    seed: int = 0
    sampler: str = "difficulty"
    temperature: float = 1.0
    epsilon: float = 0.05
    tokenizer: str = "bytes"
    bf16: bool = False
    compile: bool = False
    strategy: str = "ddp"
    augment: bool = False
    strict: bool = False
    checkpoint_every: int = 500
    keep: int = 2
    val_every: int = 500
    val_examples: int = 512
    most_bad: int = 10

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError, "<field>: expected ..., got ..."."""
        check_fields(vars(self))
        if not isinstance(self.model, JAIRConfig):
            raise TypeError(f"model: expected a JAIRConfig, got {type(self.model).__name__}")
        if not self.sources:
            raise ValueError("sources: expected at least one, got none")
        specs = {field: SourceSpec.parse_all(getattr(self, field)) for field in ("sources", "val")}
        for field, parsed in specs.items():
            names_of = [spec.name for spec in parsed]
            if len(set(names_of)) < len(names_of):
                raise ValueError(f"{field}: expected different ones, got {', '.join(names_of)}")
        pairs = zip(self.sources, specs["sources"], strict=True)
        weighted = [text for text, spec in pairs if spec.weight != 1]
        if weighted and self.sampler != "temperature":
            raise ValueError(
                "sources: expected a weight of 1 with every sampler but 'temperature', got "
                f"{weighted[0]!r} with {self.sampler!r}"
            )
        if self.strategy == "fsdp" and self.ema:
            raise ValueError(f"ema: expected 0 with strategy 'fsdp', got {self.ema}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 1, 2, ..: linear up to warmup_steps, then a cosine to 0 after the last, or
        constant.
        """
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        share = (step - self.warmup_steps) / max(self.steps + 1 - self.warmup_steps, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**dataclasses.asdict(self), **{name: list(getattr(self, name)) for name in LISTS}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainPlan:
        """From what `to_dict` gave."""
        model = JAIRConfig.from_dict(values["model"])
        lists = {name: tuple(values[name]) for name in LISTS}
        return cls(**{**values, **lists, "model": model})


FREE = ("steps", "checkpoint_every", "keep", "val_every", "val_examples", "val")  # for a run that goes on


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields of `TrainPlan.to_dict` that are not `FREE` and differ, those of the model as "model.NAME"."""
    before, after = (
        {**plan, **{f"model.{name}": value for name, value in plan["model"].items()}} for plan in (old, new)
    )
    names = [name for name in after if name not in ("model", *FREE)]
    return {name: (before.get(name), after[name]) for name in names if before.get(name) != after[name]}


def check_fields(values: Mapping[str, Any]) -> None:
    """Of settings by the names of TrainPlan's fields, those that are here, each on its own.

    Raises:
        TypeError, ValueError: one of a wrong type or out of range, "<field>: expected ..., got ...".
    """
    for name, value in values.items():
        if name in _CHECKS:
            _CHECKS[name](name, value)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an int >= {least}, got {value}")
    if value >= 2**63:
        raise ValueError(f"{name}: expected an int >= {least} and < 2**63, got {value}")


def _number(name: str, value: object, bound: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    fits = {"": value < math.inf, " and < 1": value < 1, " and <= 1": value <= 1}[bound]
    if not (value >= 0 and fits):
        raise ValueError(f"{name}: expected a number >= 0{bound}, got {value}")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) and not (name == "init" and value is None):
        raise TypeError(f"{name}: expected a str, got {value!r}")


def _texts(name: str, value: object) -> None:
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name}: expected a list of strings, got {value!r}")


def _sampler(name: str, value: object) -> None:
    if value == "doremi":
        raise ValueError(f"{name}: expected a rule that needs no reference model, got 'doremi'")
    check.choice(name, value, SAMPLERS)


_COUNTS = (
    "steps",
    "batch_size",
    "accumulate",
    "checkpoint_every",
    "keep",
    "val_every",
    "val_examples",
    "most_bad",
)
_CHECKS: dict[str, Callable[[str, object], None]] = {
    **dict.fromkeys(_COUNTS, partial(_whole, least=1)),
    **dict.fromkeys(("seed", "warmup_steps"), partial(_whole, least=0)),
    **dict.fromkeys(("lr", "temperature"), check.positive),
    **dict.fromkeys(("weight_decay", "clip"), _number),
    "ema": partial(_number, bound=" and < 1"),
    "epsilon": partial(_number, bound=" and <= 1"),
    **dict.fromkeys(("bf16", "compile", "augment", "strict"), check.flag),
    "strategy": partial(check.choice, options=STRATEGIES),
    "schedule": partial(check.choice, options=SCHEDULES),
    "sampler": _sampler,
    **dict.fromkeys(("init", "tokenizer"), _text),
    **dict.fromkeys(LISTS, _texts),
}


def read_settings(path: Path) -> dict[str, Any]:
    """A configuration file in JSON: fields of TrainPlan, "model" with those of JAIRConfig, "preset".

    A string alone is a list of one.

    Raises:
        OSError: it cannot be read. ValueError: it is no JSON object, or has fields that are unknown, by name.
            TypeError: "model" is no object. What other fields are is for `check_fields` to say.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, no UTF-8
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    known = {field.name for field in dataclasses.fields(TrainPlan)} | {"preset"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{path}: expected fields among {', '.join(sorted(known))}, got {', '.join(unknown)}"
        )
    for name in LISTS:
        given = values.get(name, [])
        values[name] = [given] if isinstance(given, str) else given
    if not isinstance(values.get("model", {}), dict):
        raise TypeError(f"model: expected an object with fields of JAIRConfig, got {values['model']!r}")
    return values
