"""What a run tells: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jair._files import write_text
from jair.encoders import optional_import
from jair.runs import LOG


class Logs:
    """The records of a run; after `resume_step` what an earlier attempt wrote is dropped.

    metrics.jsonl has an object a step ("step", "loss", "lr", "grad_norm", "probabilities" and "losses" by
    source, "examples_per_second"; loss or grad_norm of a step that was skipped is null) and one a validation
    ("step", "val_loss", "val_accuracy"; of several sources their mean, then also "val_losses" and
    "val_accuracies" by source). What is not finite is null.
    """

    def __init__(self, out: Path, steps: int, resume_step: int, console: Console) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / LOG
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= resume_step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        board = optional_import("torch.utils.tensorboard", "train")
        self._board = board.SummaryWriter(str(out / "tensorboard"), purge_step=resume_step + 1)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}, {task.fields[rate]} examples/s,"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("", total=steps, completed=resume_step, loss="-", rate="-")
        self._progress.start()

    def add(self, record: dict[str, Any]) -> None:
        """A step's or a validation's."""
        record = {name: _finite(value) for name, value in record.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        step = record["step"]
        for name, value in record.items():
            if isinstance(value, dict):
                for source, number in value.items():
                    if number is not None:
                        self._board.add_scalar(f"{name}/{source}", number, step)
            elif name != "step" and value is not None:
                self._board.add_scalar(name, value, step)
        if "loss" in record:
            loss = "-" if record["loss"] is None else f"{record['loss']:.3f}"
            rate = f"{record['examples_per_second']:.0f}"
            self._progress.update(self._task, completed=step, loss=loss, rate=rate)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text, highlight=False)

    def close(self) -> None:
        """Finish all files."""
        self._progress.stop()
        self._file.close()
        self._board.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(number) for name, number in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off by the end of its process
