"""What a model in training does with examples it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F

from jair.data.collate import IGNORED, Collator
from jair.data.examples import Example
from jair.data.sources import Source
from jair.training.parallel import Workers

Tensor = torch.Tensor
Forward = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]
NAMES = {"val_loss": "val_losses", "val_accuracy": "val_accuracies"}


class Validation:
    """Measures of the validation sources, shared out among the processes.

    Args:
        sources: whole, the same in every process. collate: as in training. examples: of each source.
        batch_size: over all processes. workers: this process among all.

    Raises:
        ValueError: a source has no example that can be read, by name.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        collate: Collator,
        *,
        examples: int,
        batch_size: int,
        workers: Workers,
    ) -> None:
        self.sources, self.collate, self.workers = sources, collate, workers
        self.examples, self.size = examples, max(1, batch_size // workers.count)
        self.spare = {source.name: self._first(source) for source in sources}

    def measure(self, logits_of: Forward) -> dict[str, Any]:
        """val_loss and val_accuracy, of several sources their means, then also each source's own.

        Args:
            logits_of: from a batch to logits [B,T,V] and labels, on the device; called equally often in all
                processes.
        """
        each = {source.name: self._of_source(source, logits_of) for source in self.sources}
        measured: dict[str, Any] = {name: sum(v[name] for v in each.values()) / len(each) for name in NAMES}
        if len(each) > 1:
            for name, by_source in NAMES.items():
                measured[by_source] = {source: values[name] for source, values in each.items()}
        return measured

    def _first(self, source: Source) -> Example:
        found = next(source.evaluation(self.examples), None)
        if found is None:
            reasons = ", ".join(source.skipped.counts) or "there are none"
            raise ValueError(
                f"val: expected {source.name} to have an example that can be read among the first "
                f"{self.examples}, got none: {reasons}"
            )
        return found

    @torch.no_grad()
    def _of_source(self, source: Source, logits_of: Forward) -> dict[str, float]:
        """Mean loss of a word, and the share of examples whose every word is the likeliest: what greedy
        generation says exactly.
        """
        examples = source.evaluation(self.examples, rank=self.workers.rank, world_size=self.workers.count)
        sums = torch.zeros(4, dtype=torch.float64)
        while True:
            batch = list(islice(examples, self.size))
            if not self.workers.highest(len(batch)):
                break
            # All processes take part in each call, though one may have no example left.
            logits, labels = logits_of(self.collate(batch or [self.spare[source.name]]))
            if not batch:
                continue
            losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum")
            right = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1)
            kept = (labels != IGNORED).sum()
            sums += torch.tensor(
                [float(losses), float(kept), float(right.sum()), len(batch)], dtype=torch.float64
            )
        loss, words, right_ones, count = self.workers.sum(sums.to(self.workers.device)).tolist()
        return {"val_loss": loss / words, "val_accuracy": right_ones / count}
