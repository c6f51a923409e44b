"""Which source the next example of a training run comes from: adaptive sampling, and what it is held against.

The paper's rule is not published. "difficulty" is our decision, after the same group's sampling of tasks by
their difficulty; "odm" and "odm_exp3" are those of Albalak et al. (arXiv 2312.02406), "doremi" that of Xie
et al. (arXiv 2305.10429), with their published constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jair._checks import whole_numbers
from jair._sampling_rules import RULES, Array
from jair_kernels import _checks as check

WARMUP = {"difficulty": 100, "odm_exp3": 2000}


class AdaptiveSampler:
    """Probabilities of K sources (data set x task), from their sizes and from the losses they have had.

    With K sources, epsilon the least share times K, T the temperature and every sum over j:

        difficulty   d_i = EMA(loss_i) / (mean loss_i of the warm-up);
                     p_i = (1 - epsilon) d_i^(1/T) / sum d_j^(1/T) + epsilon / K;  uniform during the warm-up
        odm          R_i <- 0.9 R_i + 0.1 exp(loss_i), of the sources seen;
                     e_t = min(1/K, sqrt(ln K / (K t))) after t updates;
                     p_i = (1 - K e_t) R_i / sum R_j + e_t
        odm_exp3     R_i <- R_i + loss_i / (10 p_i), of the sources seen;
                     p_i = (1 - K e_t) exp(e_{t-1} R_i) / sum exp(e_{t-1} R_j) + e_t;  uniform at first
        doremi       log a_i <- log a_i + max(loss_i - reference loss_i, 0), normalised;
                     p_i = (1 - 1e-4) a_i / sum a_j + 1e-4 / K
        temperature  p_i = n_i^(1/T) / sum n_j^(1/T)
        uniform      p_i = 1 / K

    Args:
        sizes: number of examples n_i of each source. rule: one of the above.
        temperature: T > 0. epsilon: in [0,1]. smoothing: of the EMA, in [0,1).
        warmup_steps: first updates after which probabilities are still uniform; None = what is published: 100
            for "difficulty", 2000 for "odm_exp3", 0 for the others, of which it is no part.
        seed: of `sample`; equal seeds and updates give equal draws on every rank.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range, by name.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rule: str = "difficulty",
        *,
        temperature: float = 1.0,
        epsilon: float = 0.05,
        smoothing: float = 0.9,
        warmup_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        check.choice("rule", rule, tuple(RULES))
        if not len(sizes):
            raise ValueError("sizes: expected at least one source, got none")
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
                raise TypeError(f"sizes: expected ints, got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"sizes: expected at least 1 example in each source, got {size}")
        check.positive("temperature", temperature)
        _within("epsilon", epsilon, 0, 1)
        _within("smoothing", smoothing, 0, 1)
        if smoothing == 1:  # nothing would be learned
            raise ValueError(f"smoothing: expected a number below 1, got {smoothing}")
        if warmup_steps is not None and (not isinstance(warmup_steps, int) or isinstance(warmup_steps, bool)):
            raise TypeError(f"warmup_steps: expected an int or None, got {type(warmup_steps).__name__}")
        if warmup_steps is not None and warmup_steps < 0:
            raise ValueError(f"warmup_steps: expected an int >= 0, got {warmup_steps}")
        self.warmup_steps = WARMUP.get(rule, 0) if warmup_steps is None else warmup_steps
        self.rule, self.temperature, self.epsilon = rule, float(temperature), float(epsilon)
        self.smoothing = float(smoothing)
        self.sizes = np.array(sizes, dtype=np.float64)
        count = len(sizes)
        self.step = 0  # updates so far
        self.ignored = 0  # losses that were not finite
        self.total, self.seen = np.zeros(count), np.zeros(count)  # of the warm-up: losses, and how many
        self.average = np.full(count, np.nan)  # EMA of the losses
        self.reward = np.zeros(count)  # R, or its logarithm, or log a
        self.ended = np.zeros(count, dtype=bool)
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self._start, self._learn, self._weigh = RULES[rule]
        self._start(self)
        self._probabilities = self._renewed()

    @property
    def probabilities(self) -> Array:
        """float64 [K], summing to 1; of a source that has ended, 0."""
        return np.array(self._probabilities)

    def sample(self, n: int) -> NDArray[np.int64]:
        """n sources, int64 [n]."""
        whole_numbers(n=n)
        drawn = self.generator.choice(len(self.sizes), size=n, p=self._probabilities)
        return np.asarray(drawn, dtype=np.int64)

    def update(
        self,
        losses: ArrayLike,
        counts: ArrayLike,
        reference_losses: ArrayLike | None = None,
        *,
        drawn_with: ArrayLike | None = None,
    ) -> None:
        """Learn from a step.

        Args:
            losses: [K], the mean loss of each source in this step. One that is not finite is ignored and
                counted in `ignored`.
            counts: [K], its number of examples in this step; 0 = unseen: its estimate stays.
            reference_losses: [K], those of a reference model, for "doremi" alone.
            drawn_with: [K], p of "odm_exp3", the probabilities of this step's draw; None = the present ones,
                which they are not where a step is drawn before the last one's losses are known.

        Raises:
            ValueError: a wrong shape, a negative count, reference losses missing or not wanted.
        """
        loss, count = self._row("losses", losses), self._row("counts", counts)
        if (count < 0).any():
            raise ValueError(f"counts: expected numbers >= 0, got {count.min():g}")
        if (self.rule == "doremi") != (reference_losses is not None):
            wanted = (
                "those of a reference model" if self.rule == "doremi" else f"None with rule {self.rule!r}"
            )
            got = "None" if reference_losses is None else "some"
            raise ValueError(f"reference_losses: expected {wanted}, got {got}")
        seen = count > 0
        if reference_losses is not None:
            loss = loss - self._row("reference_losses", reference_losses)
        broken = seen & ~np.isfinite(loss)
        self.ignored += int(broken.sum())
        self.step += 1
        p = self._probabilities if drawn_with is None else self._row("drawn_with", drawn_with)
        self._learn(self, np.where(seen & ~broken, loss, 0.0), seen & ~broken, p)
        self._probabilities = self._renewed()

    def end(self, source: int) -> None:
        """Never draw this source again: it has no more examples.

        Raises:
            ValueError: there is no such source, or it is the last one.
        """
        if not 0 <= source < len(self.sizes):
            raise ValueError(f"source: expected 0 to {len(self.sizes) - 1}, got {source}")
        if self.ended.sum() + (not self.ended[source]) == len(self.sizes):
            raise ValueError(f"source: expected another to be left, got the last one, {source}")
        self.ended[source] = True
        self._probabilities = self._renewed()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in types that JSON has."""
        arrays = {name: _to_list(getattr(self, name)) for name in _ARRAYS}
        settings = {"rule": self.rule, "sizes": [int(size) for size in self.sizes]}
        return {
            **settings,
            **arrays,
            "ended": self.ended.tolist(),
            "step": self.step,
            "ignored": self.ignored,
            "probabilities": self._probabilities.tolist(),
            "generator": self.generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, draw for draw.

        Raises:
            ValueError: the state of another rule or of other sources, or one with parts missing.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"state: expected all that state_dict gives, got no {', '.join(missing)}")
        for name, ours in (("rule", self.rule), ("sizes", [int(size) for size in self.sizes])):
            if state[name] != ours:
                raise ValueError(f"state: expected {name} = {ours!r}, got {state[name]!r}")
        for name in _ARRAYS:
            values = [math.nan if value is None else float(value) for value in state[name]]
            setattr(self, name, np.array(values, dtype=np.float64))
        self.ended = np.array(state["ended"], dtype=bool)
        self.step, self.ignored = int(state["step"]), int(state["ignored"])
        self._probabilities = np.array(state["probabilities"], dtype=np.float64)
        self.generator.bit_generator.state = state["generator"]

    def _row(self, name: str, values: ArrayLike) -> Array:
        row = np.asarray(values, dtype=np.float64)
        if row.shape != self.sizes.shape:
            raise ValueError(f"{name}: expected shape [{len(self.sizes)}], got {list(row.shape)}")
        return row

    def _renewed(self) -> Array:
        p = np.where(self.ended, 0.0, self._weigh(self))
        return np.asarray(p / p.sum(), dtype=np.float64)


_ARRAYS = ("total", "seen", "average", "reward")


def _to_list(values: Array) -> list[float | str | None]:
    """NaN and infinity as JSON can hold them."""
    return [None if math.isnan(v) else float(v) if math.isfinite(v) else str(float(v)) for v in values]


def _within(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value}")
