"""Batches of examples from sampled sources, loaded while the step before them is computed.

The sources of step s are drawn when step s - 1 starts, with the probabilities that step s - 2 left: so the
next batch can be loaded meanwhile, and a run depends on nothing but its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jair.data.collate import Collator
from jair.data.sources import Source
from jair.sampler import AdaptiveSampler


@dataclass(frozen=True)
class Batch:
    """The share of one process: the probabilities of all sources that it was drawn with, which source each
    example is from, and parts of it as a model takes them.
    """

    probabilities: list[float]
    sources: list[int]
    parts: list[dict[str, torch.Tensor]]


class Batches:
    """An endless iterator whose state can be saved after any step.

    Args:
        sources, sampler, collate: what is drawn from, by what, and made into tensors how.
        batch_size: of all processes together. parts: into how many a process splits its share.
        rank, count: of the process. seed: of augmentation.

    Raises:
        ValueError: a batch has fewer examples than processes x parts.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        sampler: AdaptiveSampler,
        collate: Collator,
        batch_size: int,
        *,
        parts: int = 1,
        rank: int = 0,
        count: int = 1,
        seed: int = 0,
    ) -> None:
        if batch_size < parts * count:
            least = f"{parts * count}, processes x parts"
            raise ValueError(f"batch_size: expected at least {least} of a batch, got {batch_size}")
        self.sources, self.sampler, self.collate = sources, sampler, collate
        self.batch_size, self.parts, self.rank, self.count, self.seed = batch_size, parts, rank, count, seed
        self.step = 0  # of the batch that is being loaded
        self._pool = ThreadPoolExecutor(1)
        self._drawn: list[int] = []
        self._drawn_with: list[float] = []
        self._before: list[dict[str, Any]] = []
        self._loading: Future[Batch] | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """The next batch; drawing and loading of the one after it begins."""
        if self._loading is None:
            self._draw()
            self._load()
        assert self._loading is not None
        batch = self._loading.result()
        self._draw()
        self._load()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What makes the next batches the same: the sources drawn but not yet given, what they were drawn
        with, and where all sources were before those examples were taken.
        """
        states = (
            self._before if self._loading is not None else [source.state_dict() for source in self.sources]
        )
        return {
            "step": self.step,
            "drawn": self._drawn,
            "drawn_with": self._drawn_with,
            "sources": states,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        self.step, self._drawn = int(state["step"]), [int(i) for i in state["drawn"]]
        self._drawn_with = [float(p) for p in state["drawn_with"]]
        for source, of_source in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(of_source)
        if self._drawn:
            self._load()

    def close(self) -> None:
        """Stop loading."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _draw(self) -> None:
        self.step += 1
        self._drawn_with = self.sampler.probabilities.tolist()
        self._drawn = self.sampler.sample(self.batch_size).tolist()

    def _load(self) -> None:
        self._before = [source.state_dict() for source in self.sources]
        share = self._drawn[self.rank :: self.count]
        self._loading = self._pool.submit(self._make, self._drawn_with, share, self.step)

    def _make(self, probabilities: list[float], drawn: list[int], step: int) -> Batch:
        examples = [self.sources[index].next() for index in drawn]
        parts = []
        for number, indices in enumerate(np.array_split(np.arange(len(examples)), self.parts)):
            seed = (self.seed * 1_000_003 + step) * 4096 + self.rank * self.parts + number
            parts.append(self.collate([examples[i] for i in indices], seed))
        return Batch(probabilities, drawn, parts)
