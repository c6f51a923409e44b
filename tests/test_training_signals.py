"""A signal that reaches one of two processes stops both, after the same step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("typer", reason="the extra 'train' is not installed")
pytest.importorskip("aggdraw", reason="the extra 'train' is not installed")
pytest.importorskip("tensorboard", reason="the extra 'train' is not installed")
from training_runs import VIT, arguments, records

from jair.training import checkpoint

# The process signals itself in step 2: in the loss, before it is summed over both, or in the log, after that.
PROGRAM = """
import os, sys
from jair.cli import main
from jair.training import logs, loop

moment, number = sys.argv[1], int(sys.argv[2])
of_class, name = {"loss": (loop.Trainer, "_losses"), "log": (logs.Logs, "add")}[moment]
method = getattr(of_class, name)
calls = 0

def signalled(self, *arguments):
    global calls
    made = method(self, *arguments)
    calls += 1
    if calls == 2:
        os.kill(os.getpid(), number)
    return made

if number:
    setattr(of_class, name, signalled)
sys.argv = ["jair", *sys.argv[3:]]
main()
"""


def both(words: list[str], moment: str, numbers: tuple[int, int]) -> list[int]:
    """Exit statuses of two processes, each of which signals itself (0: does not)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, moment, str(int(number)), *words],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank, number in enumerate(numbers)
    ]
    try:
        return [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    ("moment", "numbers", "stopped", "step"),
    [
        ("log", (signal.SIGTERM, 0), signal.SIGTERM, 3),
        ("loss", (signal.SIGINT, signal.SIGTERM), signal.SIGTERM, 2),
    ],
    ids=["after the sums", "two signals before them"],
)
def test_one_signal_stops_both(
    moment: str, numbers: tuple[int, int], stopped: signal.Signals, step: int, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = arguments(out, "--steps", "4", image_encoder_config=VIT)
    assert both(words, moment, numbers) == [128 + stopped] * 2
    assert checkpoint.newest(out) == out / f"checkpoint-{step:08d}"
    assert both([*words, "--resume"], moment, (0, 0)) == [0, 0]
    assert [record["step"] for record in records(out)] == [1, 2, 3, 4]
