"""What several processes hold in shards, as files of safetensors: each writes and reads its own part."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor


def of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that are in shards."""
    return {name: value for name, value in tensors.items() if isinstance(value, DTensor)}


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write this process's shards; all processes come back together.

    Raises:
        OSError: on all of them: one could not, and nothing is left.
    """
    try:
        with _told(folder, "written"):
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read this process's shards into `tensors`.

    Raises:
        OSError: on all of them: one could not.
    """
    with _told(folder, "read"):
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


@contextmanager
def _told(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except CheckpointException as failed:  # which is no Exception
        rank, (error, _) = next(iter(failed.failures.items()))
        raise OSError(f"{folder}: could not be {what} by process {rank}: {error}") from failed
