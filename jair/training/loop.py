"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jair.data.collate import IGNORED, Collator
from jair.data.records import told
from jair.data.sources import Source, SourceSpec
from jair.model import JAIR
from jair.sampler import AdaptiveSampler
from jair.training import checkpoint, shards
from jair.training.batches import Batches
from jair.training.finite import RunningStatistics, broken
from jair.training.logs import Logs
from jair.training.parallel import Workers
from jair.training.parameters import freeze, groups, start_from
from jair.training.plan import TrainPlan, changes
from jair.training.signals import Signals, Stopped
from jair.training.state import load_tensors, part, tensors_of, weights_of
from jair.training.validation import Validation

Tensor = torch.Tensor


class Trainer:
    """One process of a run.

    Args:
        plan: settings. out: folder of checkpoints and logs. sources, val: opened, this process's share.
        tokenizer: of transformers. workers: this process among all. console: for progress.
        start: a saved model whose weights are the first ones.
    """

    def __init__(
        self,
        plan: TrainPlan,
        out: Path,
        sources: Sequence[Source],
        val: Sequence[Source],
        tokenizer: Any,
        workers: Workers,
        console: Console,
        start: Path | None = None,
    ) -> None:
        self.plan, self.out, self.sources = plan, out, sources
        self.tokenizer, self.workers, self.console = tokenizer, workers, console
        torch.manual_seed(plan.seed)
        self.model = JAIR(plan.model).to(workers.device)
        if start is not None:
            start_from(self.model, start)
        self.frozen = freeze(self.model, plan.freeze)
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(plan.ema)) if plan.ema else None
        )
        self.running = RunningStatistics(self.model)
        self.called = workers.wrap(self.model, plan.strategy)
        self.sharded = workers.count > 1 and plan.strategy == "fsdp"
        self.run = torch.compile(self.called) if plan.compile else self.called
        self.optimizer = torch.optim.AdamW(
            groups(self.called, plan.weight_decay), lr=plan.lr, betas=(0.9, 0.98), fused=True
        )
        sizes = [
            max(1, round(source.size * weight))
            for source, weight in zip(sources, self._weights(), strict=True)
        ]
        self.sampler = AdaptiveSampler(
            sizes, plan.sampler, temperature=plan.temperature, epsilon=plan.epsilon, seed=plan.seed
        )
        config = plan.model
        self.collate = Collator(
            tokenizer, config.image_size, config.max_text_length, config.max_target_length, train=plan.augment
        )
        self.batches = Batches(
            sources,
            self.sampler,
            self.collate,
            plan.batch_size,
            parts=plan.accumulate,
            rank=workers.rank,
            count=workers.count,
            seed=plan.seed,
        )
        self.validation = Validation(
            val, self.collate, examples=plan.val_examples, batch_size=plan.batch_size, workers=workers
        )
        self.step = self.bad = self.bad_in_a_row = 0
        self.skipped: list[list[str]] = []  # what each process has told when it last saved
        self.signals = Signals()
        self.signal = 0  # what all processes agreed to stop for

    def _weights(self) -> list[float]:
        if len(self.plan.sources) != len(self.sources):
            raise ValueError(
                f"sources: expected {len(self.plan.sources)} as in the plan, got {len(self.sources)}"
            )
        return [SourceSpec.parse(text).weight for text in self.plan.sources]

    def train(self) -> Path:
        """Run to the last step; the last checkpoint. Signals are heeded in the main thread alone.

        Raises:
            Stopped: by SIGINT or SIGTERM, after a checkpoint.
            ValueError: plan.most_bad steps in a row without a finite loss, or weights to save that are not.
        """
        with self.signals:
            return self._train()

    def _train(self) -> Path:
        logs = Logs(self.out, self.plan.steps, self.step, self.console) if self.workers.first else None
        saved = checkpoint.newest(self.out) if self.step else None
        try:
            while self.step < self.plan.steps:
                record = self._step()
                if logs is not None:
                    logs.add(record)
                last = self.step == self.plan.steps
                if self.validation.sources and (last or self.step % self.plan.val_every == 0):
                    shown = self.called if self.average is None else self.average.module
                    shown.eval()  # what is measured is what is saved
                    self.workers.like_first(shown.buffers())
                    measured = self.validation.measure(partial(self._logits, shown))
                    if logs is not None:
                        logs.add({"step": self.step, **measured})
                if last or self.signal or self.step % self.plan.checkpoint_every == 0:
                    saved = self._save()
                if self.signal and not last:
                    raise Stopped(self.signal, self.step)
        finally:
            self.batches.close()
            if logs is not None:
                logs.close()
        assert saved is not None
        return saved

    def _step(self) -> dict[str, Any]:
        start = time.perf_counter()
        batch = next(self.batches)
        self.step += 1
        words = torch.tensor(float(sum((part["labels"] != IGNORED).sum() for part in batch.parts)))
        total_words = float(self.workers.sum(words.to(self.workers.device)))
        self.called.train()
        for module in self.frozen:
            module.eval()
        self.running.keep()
        each, loss = [], 0.0
        for inputs in batch.parts:
            words_loss, of_examples = self._losses(inputs)
            share = words_loss / total_words
            loss += float(share.detach())
            (share * self.workers.count).backward()
            each.append(of_examples)
        sums = self._sums(batch.sources, torch.cat(each), loss)
        loss, losses, counts = float(sums[0]), sums[1 : 1 + len(self.sources)], sums[1 + len(self.sources) :]
        self.signal = self.workers.highest(self.signals.noted)
        norm = self._apply(loss)
        means = losses / counts.clamp(min=1)
        self.sampler.update(means.numpy(), counts.numpy(), drawn_with=batch.probabilities)
        names = [source.name for source in self.sources]
        finite = loss if torch.isfinite(torch.tensor(loss)) else None
        return {
            "step": self.step,
            "loss": finite,
            "lr": self.plan.lr_at(self.step),
            "grad_norm": norm,
            "probabilities": dict(zip(names, batch.probabilities, strict=True)),
            "losses": {
                name: float(mean)
                for name, mean, count in zip(names, means, counts, strict=True)
                if count and torch.isfinite(mean)
            },
            "examples_per_second": self.plan.batch_size / (time.perf_counter() - start),
        }

    def _losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum over the words of a batch, and the mean of each example's."""
        logits, labels = self._logits(self.run, batch)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        words = (labels != IGNORED).sum(1).clamp(min=1)
        return losses.sum(), losses.detach().sum(1) / words

    def _sums(self, sources: list[int], each: Tensor, loss: float) -> Tensor:
        """Over all processes: the loss, each source's losses and how many; on the CPU."""
        count = len(self.sources)
        sums = torch.zeros(1 + 2 * count, dtype=torch.float64)
        sums[0] = loss
        index = torch.tensor(sources)
        sums[1 : 1 + count].index_add_(0, index, each.double().cpu())
        sums[1 + count :].index_add_(0, index, torch.ones(len(sources), dtype=torch.float64))
        return self.workers.sum(sums.to(self.workers.device)).cpu()

    def _apply(self, loss: float) -> float | None:
        """An optimizer step, left out where the loss or the gradient is not finite; the gradient's norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.called.parameters(), self.plan.clip or float("inf"))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        fine = bool(torch.isfinite(norm)) and abs(loss) < float("inf")
        if fine:
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.lr_at(self.step)
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
        else:
            self.running.put_back()
        self.optimizer.zero_grad()
        self.bad += not fine
        self.bad_in_a_row = 0 if fine else self.bad_in_a_row + 1
        if self.bad_in_a_row >= self.plan.most_bad:
            raise ValueError(f"loss: expected finite ones, got {self.bad_in_a_row} steps in a row without")
        return float(norm) if fine else None

    def _logits(self, model: Callable[..., Any], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """float32 [B,T,V] and the labels, on the device."""
        device = self.workers.device
        inputs = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        labels = inputs.pop("labels")
        with torch.autocast(device.type, torch.bfloat16, enabled=self.plan.bf16):
            output = model(**inputs, decoder_input_ids=self.model.shift_right(labels))
        return output.logits.float(), labels

    def _save(self) -> Path | None:
        models = [self.model] if self.average is None else [self.model, self.average.module]
        each = self.workers.gather([name for model in models for name in broken(model)])
        if found := sorted({name for names in each for name in names}):
            raise ValueError(
                f"weights: expected finite ones to save after step {self.step}, got others in {found[0]}"
            )
        state = {
            "plan": self.plan.to_dict(),
            "step": self.step,
            "bad": [self.bad, self.bad_in_a_row],
            "sampler": self.sampler.state_dict(),
            "batches": self.workers.gather(self.batches.state_dict()),
        }
        read = [*self.sources, *self.validation.sources]
        self.skipped = self.workers.gather([line for source in read for line in told(source)])
        tensors, apart, saved = self._tensors(), None, None
        if self.sharded:
            apart = checkpoint.shards_before(self.out, self.step)
            shards.write(apart, of_shards := shards.of(tensors))
            tensors = {name: value for name, value in tensors.items() if name not in of_shards}
            weights = weights_of(self.called)
        else:
            weights = part(tensors, "weights." if self.average is None else "average.")
        if self.workers.first:
            saved = checkpoint.write(
                self.out,
                self.step,
                lambda folder: self._save_model(folder, weights),
                tensors,
                state,
                self.plan.keep,
                apart,
            )
        self.workers.wait()
        return saved if saved is not None else checkpoint.newest(self.out)

    def _tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.called, self.optimizer, self.average, sharded=self.sharded)

    def _save_model(self, folder: Path, weights: dict[str, Tensor]) -> None:
        with torch.device("meta"):
            model = JAIR(self.model.config)
        model.load_state_dict({name: value.cpu() for name, value in weights.items()}, assign=True)
        model.save_pretrained(folder)
        if self.plan.tokenizer != "bytes":
            self.tokenizer.save_pretrained(folder)

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it is that of another plan, by field with both values, or of another number of
                processes.
        """
        tensors, state = checkpoint.read(folder)
        if changed := changes(state["plan"], self.plan.to_dict()):
            was = ", ".join(f"{name} = {old!r}" for name, (old, _) in changed.items())
            got = ", ".join(repr(new) for _, new in changed.values())
            raise ValueError(f"--resume: expected {was} as in {folder}, got {got}")
        if (count := len(state["batches"])) != self.workers.count:
            raise ValueError(f"--resume: expected {count} processes as in {folder}, got {self.workers.count}")
        if self.sharded:
            of_shards = shards.of(self._tensors())
            shards.read(folder / checkpoint.SHARDS, of_shards)
            tensors |= of_shards
        load_tensors(tensors, self.called, self.optimizer, self.average, sharded=self.sharded)
        self.step = int(state["step"])
        self.bad, self.bad_in_a_row = state["bad"]
        self.sampler.load_state_dict(state["sampler"])
        self.batches.load_state_dict(state["batches"][self.workers.rank])
