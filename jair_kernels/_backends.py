"""Which implementation of an op runs. One predicate, `why_not`, drives the automatic choice, the error of an
explicit choice, the skips of the tests and the report of ``python -m jair_kernels``.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from jair_kernels import _library

BACKENDS = ("reference", "cpu", "triton", "cuda")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# The order in which an automatic choice tries the backends, by the device of the first input.
_AUTOMATIC = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
_CUDA_FIRST = frozenset({"fused_tokenlearner"})


def always(*inputs: object, **about: object) -> str | None:
    """The limit of a kernel that has none: all inputs fit."""
    return None


@dataclass(frozen=True)
class Kernel:
    """One op on one backend: what runs (it returns a tensor or several), and a further limit on its inputs
    (None = they fit). `reads_result`: the backward takes the forward's first result, which so must be kept.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    unfit: Callable[..., str | None] = always
    reads_result: bool = False

    def kept(self, results: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of the forward's results those that the backward reads; None in place of the first it does not."""
        return results if self.reads_result else (None, *results[1:])


@dataclass(frozen=True)
class _Traits:
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    unavailable: str | None


def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not INTERPRETED and not torch.cuda.is_available():
        return "no CUDA device is available (TRITON_INTERPRET=1 runs the kernels on CPU tensors, slowly)"
    return None


def _why_no_cuda() -> str | None:
    if _library.load_error is not None:
        return _library.load_error
    if not _library.has_cuda_kernels():
        return "the library was built without CUDA (nvcc was not found, or JAIR_KERNELS_CUDA=0)"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    return None


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_TRAITS = {
    "reference": _Traits((), (*FLOATS, torch.float64), None),
    "cpu": _Traits(("cpu", "meta"), (*FLOATS, torch.float64), _library.load_error),
    "triton": _Traits(("cuda", "meta", "cpu") if INTERPRETED else ("cuda", "meta"), FLOATS, _why_no_triton()),
    "cuda": _Traits(("cuda", "meta"), FLOATS, _why_no_cuda()),
}
_FITS: dict[str, dict[str, Callable[..., str | None]]] = {}  # by public function and backend
_KERNELS: dict[str, dict[str, Kernel]] = {}
_BLOCKS: dict[str, dict[str, Kernel]] = {}


class _Forced(threading.local):
    """What `use_backend` asks for in this thread. Set in __init__, not on the class: a compiled function must
    find the attribute on the object to guard on it.
    """

    def __init__(self) -> None:
        self.backend: str | None = None


_forced = _Forced()


def register(op: str, **kernels: Kernel) -> None:
    """Announce the backends of an op beside "reference", which every op has."""
    _KERNELS[op] = kernels
    _FITS[op] = {name: kernel.unfit for name, kernel in kernels.items()}


def register_block(name: str, **kernels: Kernel) -> None:
    """Announce the backends of a building block: what ops are composed of, without a public function."""
    _BLOCKS[name] = kernels


def block(name: str, backend: str) -> Kernel:
    """A building block on the backend that `select` has chosen for the op composed of it."""
    return _BLOCKS[name][backend]


def register_composed(op: str, *blocks: str) -> None:
    """Announce an op that runs wherever all the building blocks do that it is composed of."""

    def limit(backend: str) -> Callable[..., str | None]:
        def unfit(*inputs: object, **about: object) -> str | None:
            if "head_width" not in about:
                return None  # tensors of the op do not tell what its attention takes
            reasons = [_BLOCKS[block][backend].unfit(*inputs, **about) for block in blocks]
            return next((reason for reason in reasons if reason is not None), None)

        return unfit

    names = [name for name in BACKENDS[1:] if all(name in _BLOCKS[block] for block in blocks)]
    _FITS[op] = {name: limit(name) for name in names}


def operators() -> tuple[str, ...]:
    """Names of the public functions."""
    return tuple(_FITS)


def kernels_of(op: str) -> tuple[str, ...]:
    """Backends beside "reference" that an op has in this installation, whether they can run or not."""
    return tuple(_FITS[op])


def dtypes(backend: str) -> tuple[torch.dtype, ...]:
    """Element types a backend computes in."""
    return _TRAITS[backend].dtypes


def kernel(op: str, backend: str) -> Kernel:
    """The implementation `select` has chosen."""
    return _KERNELS[op][backend]


def unavailable(backend: str) -> str | None:
    """Why no op can run on a backend on this machine, or None."""
    return _TRAITS[backend].unavailable


def available_backends() -> tuple[str, ...]:
    """Backends that can run on this machine; `why_not` tells why another cannot."""
    return tuple(name for name in BACKENDS if _TRAITS[name].unavailable is None)


def why_not(
    op: str, backend: str, *inputs: object, head_width: int | None = None, dtype: torch.dtype | None = None
) -> str | None:
    """Why `op` cannot run on `backend`, or None if it can.

    Args:
        op: name of a public function, such as "fused_tokenlearner".
        backend: "reference", "cpu", "triton" or "cuda".
        inputs: tensors of a call that are never None, in their order (x, w1, w2 of fused_tokenlearner); the
            first few, or none: what they alone tell, or the machine.
        head_width: of the attention in an op composed of it, whose tensors do not tell.
        dtype: that of the products under autocast; None = that of the first input.

    Raises:
        ValueError: op or backend is unknown.
    """
    if op not in _FITS:
        raise ValueError(f"op: expected one of {', '.join(_FITS)}, got {op!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "reference":
        return None
    traits = _TRAITS[backend]
    if traits.unavailable is not None:
        return traits.unavailable
    if backend not in _FITS[op]:
        return f"{op} has no {backend} kernel"
    if not inputs or not isinstance(inputs[0], torch.Tensor):
        return None
    main = inputs[0]
    if main.device.type not in traits.devices:
        return f"it takes tensors on {' or '.join(traits.devices)}, got {main.device.type}"
    if main.dtype not in traits.dtypes:
        return f"it takes {', '.join(str(d)[6:] for d in traits.dtypes)}, got {str(main.dtype)[6:]}"
    about = {"head_width": head_width, "dtype": dtype}
    return _FITS[op][backend](*inputs, **{name: value for name, value in about.items() if value is not None})


def select(op: str, backend: str | None, *inputs: torch.Tensor, **about: Any) -> str:
    """The backend of a call: the explicit one (argument, then `use_backend`), else the first that fits.
    `about`: what `why_not` wants to know beside the inputs.

    Raises:
        ValueError: the explicit backend is unknown or cannot run this call.
    """
    chosen = backend if backend is not None else _forced.backend
    if chosen is not None:
        reason = why_not(op, chosen, *inputs, **about)
        if reason is not None:
            raise ValueError(f"backend: expected one that can run {op}, got {chosen!r}: {reason}")
        return chosen
    order = _AUTOMATIC.get(inputs[0].device.type, ())
    for name in reversed(order) if op in _CUDA_FIRST else order:
        if why_not(op, name, *inputs, **about) is None:
            return name
    return "reference"


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within the block every op that this thread calls without an explicit `backend` runs on this one.

    What cannot run on it raises the reason. The block may surround a call of compiled code, which is compiled
    once for each backend, or stand inside it.

    Raises:
        ValueError: the backend is unknown or not available on this machine.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    reason = unavailable(backend)
    if reason is not None:
        raise ValueError(f"backend: expected one that is available, got {backend!r}: {reason}")
    previous = _forced.backend
    _forced.backend = backend
    try:
        yield
    finally:
        _forced.backend = previous
