"""The memory that a training step needs for a sample: what its forward keeps, and the most at any time.

Counted on tensors without memory, so that a model of any size takes seconds on any machine. Working memory
inside an operation is not seen; an allocator's rounding and fragments are not counted.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jair.config import JAIRConfig
from jair.cost import inputs, lengths
from jair.encoders import with_settings
from jair.model import JAIR
from jair_kernels import use_backend

Tensor = torch.Tensor


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step beside parameters, buffers, their gradients and inputs.

    saved: what the forward keeps for the backward. peak: the most that exists at once.
    """

    saved: int
    peak: int

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.saved - other.saved, self.peak - other.peak)


def memory(
    config: JAIRConfig,
    text_length: int | None = None,
    target_length: int | None = None,
    *,
    backend: str | None = None,
    device: str = "cpu",
) -> Memory:
    """Memory of one sample of a training step under bfloat16 autocast.

    What a batch of 2 needs more than a batch of 1, so that copies of the weights cancel.

    Args:
        config: the model. text_length, target_length: as in `jair.cost.macs`.
        backend: of the operations of `jair_kernels`; None = the device's own where they have one.
        device: "cpu" or "cuda".
    """
    return memories(config, (backend,), text_length, target_length, device=device)[0]


def memories(
    config: JAIRConfig,
    backends: Sequence[str | None],
    text_length: int | None = None,
    target_length: int | None = None,
    *,
    device: str = "cpu",
) -> list[Memory]:
    """`memory` on each of these backends."""
    steps = [(backend, batch) for backend in backends for batch in (1, 2)]
    counts = _count(config, steps, text_length, target_length, device)
    return [two - one for one, two in zip(counts[::2], counts[1::2], strict=True)]


def batch_memory(
    config: JAIRConfig,
    batch: int,
    text_length: int | None = None,
    target_length: int | None = None,
    backend: str | None = None,
    device: str = "cpu",
) -> Memory:
    """Memory of a whole batch, with the copies of weights that autocast makes. Arguments as in `memory`."""
    return _count(config, [(backend, batch)], text_length, target_length, device)[0]


def _count(
    config: JAIRConfig,
    steps: Sequence[tuple[str | None, int]],
    text_length: int | None,
    target_length: int | None,
    device: str,
) -> list[Memory]:
    """A training step on each of these backends with a batch of that size."""
    text_length, target_length = lengths(config, text_length, target_length)
    with torch.device("meta"):
        model = JAIR(with_settings(config))
    with FakeTensorMode(allow_non_fake_inputs=True), _no_collector():
        model = model.to_empty(device=device)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        found = []
        for backend, batch in steps:
            with torch.device(device):
                given = inputs(config, batch, text_length, target_length)
            with nullcontext() if backend is None else use_backend(backend):
                found.append(_step(model, given, device))
    return found


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without Python's search for cycles, which takes as long as all else and frees no tensor."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _step(model: JAIR, given: dict[str, Tensor], device: str) -> Memory:
    live, kept = _Live(), _Kept()
    own = [*model.parameters(), *model.buffers(), *given.values()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    live.ignore([*own, *gradients])
    with live:
        with torch.autocast(device, torch.bfloat16), kept.hooks():
            loss = model(**given).loss
        saved = kept.bytes(own)
        loss.backward()
    return Memory(saved, live.peak)


class _Kept:
    """Tensors that the graph holds; what it has dropped does not count."""

    def __init__(self) -> None:
        self.holders: weakref.WeakSet[_Holder] = weakref.WeakSet()

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        def keep(tensor: Tensor) -> _Holder:
            holder = _Holder(tensor)
            self.holders.add(holder)
            return holder

        return torch.autograd.graph.saved_tensors_hooks(keep, lambda holder: holder.tensor)

    def bytes(self, own: list[Tensor]) -> int:
        """Of their storages, each once, without those of `own`."""
        ours = {tensor.untyped_storage()._cdata for tensor in own}
        storages = {
            s._cdata: s.nbytes() for s in (holder.tensor.untyped_storage() for holder in self.holders)
        }
        return sum(size for key, size in storages.items() if key not in ours)


class _Holder:
    """A saved tensor, as long as the graph holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Live(TorchDispatchMode):
    """Bytes of the storages that operations have made and nobody has dropped, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.now = self.peak = 0

    def ignore(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            self.known.add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size
