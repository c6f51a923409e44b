"""Commands that run one after another against one clock, each with a time limit of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 465
GRACE_SECONDS = 8  # between the interrupt, at which pytest still writes its results, and the end


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    status: str  # ok, failed, skipped
    seconds: float
    reason: str = ""
    output: str = ""
    lacks_tool: bool = False
    exit_status: int | None = None  # of a command that ended by itself

    def __str__(self) -> str:
        return f"{self.name:10} {self.status:8} {self.seconds:5.0f} s  {self.reason}".rstrip()


@dataclass
class Check:
    """The steps of one run, in order, against one clock."""

    seconds: float = TOTAL_SECONDS
    start: float = field(default_factory=time.monotonic)
    outcomes: list[Outcome] = field(default_factory=list)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def status(self, name: str) -> str:
        return next((o.status for o in self.outcomes if o.name == name), "skipped")

    def exit_status(self, name: str) -> int | None:
        return next((o.exit_status for o in self.outcomes if o.name == name), None)

    def skip(self, name: str, reason: str, *, lacks_tool: bool = False) -> None:
        self.add(Outcome(name, "skipped", 0, reason, lacks_tool=lacks_tool))

    def run(self, name: str, command: list[str], seconds: float, **environment: str) -> Outcome:
        """One step, in a process group of its own, so that what it started ends with it."""
        seconds = min(seconds, self.left() - GRACE_SECONDS)
        if seconds < 5:
            self.skip(name, "no time is left")
            return self.outcomes[-1]
        print(f"--- {name}, at most {seconds:.0f} s", flush=True)
        begin = time.monotonic()
        output, reason, code = _run(command, seconds, environment)
        outcome = Outcome(name, "failed" if reason else "ok", time.monotonic() - begin, reason, output)
        outcome.exit_status = code
        return self.add(outcome)

    def together(self, *steps: Callable[[], object]) -> None:
        """Steps that do not disturb each other, as none of them is timed."""
        with _interruptible(), ThreadPoolExecutor(len(steps)) as pool:
            for running in [pool.submit(step) for step in steps]:
                running.result()

    def add(self, outcome: Outcome) -> Outcome:
        self.outcomes.append(outcome)
        print(f"{outcome.output[-6000:]}\n{outcome}", flush=True)
        return outcome


def _run(command: list[str], seconds: float, environment: dict[str, str]) -> tuple[str, str, int | None]:
    """(output, "" or the reason of the failure, the exit status of a command that ended by itself)."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment
    try:
        with _interruptible():
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
    except OSError as error:
        return "", f"{command[0]} does not start: {error.strerror}", None
    reason = ""
    for limit, sign in ((seconds, signal.SIGINT), (GRACE_SECONDS, signal.SIGKILL), (None, signal.SIGKILL)):
        try:
            output, _ = process.communicate(timeout=limit)
            break
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:.0f} s"
            _signal_group(process.pid, sign)
    _signal_group(process.pid, signal.SIGKILL)  # what the step left behind
    if reason:
        return output, reason, None
    if process.returncode:
        reason = f"exit status {process.returncode}: {last_line(output)[:200]}"
    return output, reason, process.returncode


@contextmanager
def _interruptible() -> Iterator[None]:
    """What is started within takes interrupts, also where a shell has started this process in the background:
    it then ignores them, and its children would too. Only the main thread may change that, for all of them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _signal_group(group: int, sign: signal.Signals) -> None:
    try:
        os.killpg(group, sign)
    except ProcessLookupError:
        return


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
