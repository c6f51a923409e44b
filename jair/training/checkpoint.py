"""Checkpoints: written beside their place and moved there whole, with a list of what they hold.

A folder OUT/checkpoint-NNNNNNNN has a model as `JAIR.save_pretrained` writes it, its tokenizer, the weights
in training and the optimizer's state (training.safetensors; what several processes hold in shards, in the
files of shards/), all else (state.json), and, written last, sizes and digests of the other files
(complete.json): without that, or if it does not agree, it is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jair.encoders import optional_import
from jair.pretrained import model_folder

Tensor = torch.Tensor
PREFIX, MARK, SHARDS = "checkpoint-", "complete.json", "shards"


def write(
    out: Path,
    step: int,
    save_model: Callable[[Path], None],
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    shards: Path | None = None,
) -> Path:
    """Add a checkpoint and remove what is older than the newest `keep` whole ones, this one among them.

    shards: a folder, as `shards_before` names it, that becomes part of it.

    Raises:
        OSError: it could not be written, and nothing of it is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f".{PREFIX}*"):  # by a process that was killed while it wrote
        if left != shards:
            shutil.rmtree(left, ignore_errors=True)
    place = out / f"{PREFIX}{step:08d}"
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=out))
    try:
        temporary.chmod(0o755)
        save_model(temporary)
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        optional_import("safetensors.torch").save_file(tensors, temporary / "training.safetensors")
        if shards is not None:
            shards.rename(temporary / SHARDS)
        (temporary / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False))
        found = {str(file.relative_to(temporary)): _digest(file) for file in _files(temporary)}
        (temporary / MARK).write_text(json.dumps(found, indent=1))
        for file in _files(temporary):
            _flush(file)
        if place.exists():
            shutil.rmtree(place)
        temporary.rename(place)
        _flush(out)
    except BaseException as error:
        for folder in (temporary, shards):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, optional_import("safetensors").SafetensorError):  # what it makes of a full disk
            raise OSError(f"{place}: could not be written: {error}") from error
        raise
    kept = 1
    for old in _folders(out):
        if old == place:
            continue
        if kept >= keep:
            shutil.rmtree(old, ignore_errors=True)
        else:
            kept += is_whole(old)
    return place


def shards_before(out: Path, step: int) -> Path:
    """Where the shards of a checkpoint are written before the rest of it."""
    return out / f".{PREFIX}{step:08d}.{SHARDS}"


def newest(out: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return next((folder for folder in _folders(out) if is_whole(folder)), None)


def to_resume(out: Path) -> Path | None:
    """As `newest`.

    Raises:
        ValueError: there are checkpoints, but none is whole: a run that started again would replace its log.
    """
    found = newest(out)
    if found is None and (damaged := _folders(out)):
        got = f"damaged ones alone, the newest {damaged[0].name}"
        raise ValueError(f"--resume: expected a whole checkpoint in {out}, got {got}")
    return found


def is_whole(folder: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        listed = json.loads((folder / MARK).read_text())
        return bool(listed) and all(_digest(folder / name) == listed[name] for name in listed)
    except (OSError, ValueError, AttributeError):
        return False


def resolve(folder: Path) -> Path:
    """A saved model's folder, also by the name of one in the package, or that of a run's newest checkpoint.

    Raises:
        ValueError: there is neither.
    """
    folder = model_folder(folder)
    if (folder / "config.json").exists():
        return folder
    found = newest(folder)
    if found is None:
        raise ValueError(f"{folder}: expected a saved model or a run with a whole checkpoint, got neither")
    return found


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint."""
    tensors = optional_import("safetensors.torch").load_file(folder / "training.safetensors")
    return {name: value.clone() for name, value in tensors.items()}, json.loads(
        (folder / "state.json").read_text()
    )


def _folders(out: Path) -> list[Path]:
    return sorted((path for path in out.glob(f"{PREFIX}*") if path.is_dir()), reverse=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(file: Path) -> list[Any]:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as data:
        while block := data.read(1 << 22):
            digest.update(block)
    return [file.stat().st_size, digest.hexdigest()]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
