"""SIGINT and SIGTERM in a run: noted when they come, heeded between two steps."""

from __future__ import annotations

import signal
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
    """A signal ended the run after a checkpoint; `code` is the exit status that says which."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}; --resume goes on from there")
        self.code = 128 + number


class Signals:
    """While it is entered, `noted` is the number of the last signal, 0 before one; in the main thread alone.

    A note is this process's own. What stops a run is what all processes agreed on: one that saved and left
    while the others go on would leave them waiting for it.
    """

    def __init__(self) -> None:
        self.noted = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        heeded = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = number
