"""What the Triton kernels of all ops share on the host: how ops are defined, launched and configured.

Nothing here imports triton before the first call, and no driver is asked for anything at import.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from jair_kernels._backends import INTERPRETED
from jair_kernels._direct import PLAIN, direct

Config = dict[str, int]

MAX_OUTPUTS = 256
_TABLE = Path(__file__).with_name("_triton_table.json")
_tuning = False
_tuned: dict[str, Config | None] = {}


class _Lazy:
    """A kernel's host function, whose module (and with it triton) is imported by the first call.

    torch.library reads the schema from the signature of the fake function. It looks for the source text of a
    plain function, and imports the inductor for that; an object has none.
    """

    def __init__(self, module: str, name: str, fake: Callable[..., Any], outputs: int) -> None:
        self.module, self.__name__ = module, name
        self.__globals__: dict[str, Any] = {}
        several: Any = tuple[(torch.Tensor,) * outputs]  # type: ignore[misc]
        returned = torch.Tensor if outputs == 1 else several
        self.__signature__ = inspect.signature(fake, eval_str=True).replace(return_annotation=returned)
        self._function: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self._function is None:
            self._function = getattr(importlib.import_module(self.module), self.__name__)
        return self._function(*args)


def define(
    op: str, direction: str, fake: Callable[..., Any], outputs: int, backend: str = "triton"
) -> tuple[Any, Callable[..., Any]]:
    """Define jair_kernels::<op>_<direction>_<backend>, computed by a function of jair_kernels.<op>.<backend>.

    A triton_op, which torch.compile inlines and AOTInductor packages. The interpreter cannot be traced, so
    there the op is opaque; without triton it is too, since torch would warn of what it does not find.

    Returns:
        the operator, and what runs it, which needs no dispatcher where nothing looks on.
    """
    opaque = INTERPRETED or importlib.util.find_spec("triton") is None
    make: Any = torch.library.custom_op if opaque else torch.library.triton_op
    name = f"{op}_{direction}_{backend}"
    body = _Lazy(f"jair_kernels.{op}.{backend}", direction, fake, outputs)
    definition = make(f"jair_kernels::{name}", body, mutates_args=())
    definition.register_fake(fake)
    operator = getattr(torch.ops.jair_kernels, name)
    return operator, direct(operator.default, body)


def launch(kernel: Any, grid: tuple[Any, ...], main: torch.Tensor, *args: Any, **meta: Any) -> None:
    """Run a kernel on the device of `main`, visibly to torch.compile."""
    if INTERPRETED:
        meta = {name: value for name, value in meta.items() if name not in ("num_warps", "num_stages")}
        kernel[grid](*args, **meta)
    elif type(main) in PLAIN:
        if main.get_device() == torch.cuda.current_device():  # which costs less than to enter it
            kernel[grid](*args, **meta)
            return
        with torch.cuda.device(main.device):
            kernel[grid](*args, **meta)
    else:
        torch.library.wrap_triton(kernel)[grid](*args, **meta)


def ceil_div(a: Any, b: Any) -> Any:
    """a / b rounded up, for symbolic sizes too."""
    return (a + b - 1) // b


def padded(size: int, *, at_most: int = 1 << 30) -> int:
    """The next power of two, at least the 16 that a matrix product takes."""
    return min(max(16, 1 << (int(size) - 1).bit_length()), at_most)


def symbolic(*sizes: Any) -> bool:
    """Whether a size is unknown while torch.compile traces; then nothing may be decided from it."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def unfit(k: int) -> str | None:
    """Why so many output tokens do not fit: a program keeps the scores of a block of tokens in registers."""
    return None if k <= MAX_OUTPUTS else f"it takes up to {MAX_OUTPUTS} output tokens, got {int(k)}"


def rows_contiguous(x: torch.Tensor) -> torch.Tensor:
    """x itself where its last axis is contiguous, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def contiguous(parameter: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """A parameter as the kernels read it; where there is none, x, which they then do not read."""
    return x if parameter is None else parameter.contiguous()


def precision(x: torch.Tensor) -> str:
    """How float32 matrix products are done: PyTorch's own switch decides about TF32."""
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


@cache
def table() -> dict[str, Config]:
    """The shipped configurations: kernel / bits of an element / padded K -> block sizes, warps, stages."""
    result: dict[str, Config] = json.loads(_TABLE.read_text())
    return result


@lru_cache(maxsize=4096)
def _key(kernel: str, size: int, k: int) -> str:
    return f"{kernel}/{8 * size}/{padded(k)}"


@lru_cache(maxsize=4096)
def _tuned_key(key: str, tokens: int, width: int, device: int) -> str:
    capability = torch.cuda.get_device_capability(device)
    return f"{key}/{padded(tokens)}/{padded(width)}/sm_{capability[0]}{capability[1]}"


def _cache_file(key: str) -> Any:
    """Triton's own disk cache (TRITON_CACHE_DIR) keeps what was tuned."""
    from triton.runtime.cache import get_cache_manager

    digest = hashlib.sha256(f"jair_kernels/{key}/{sorted(table().items())}".encode())
    return get_cache_manager(digest.hexdigest())


def _load_tuned(key: str) -> Config | None:
    if key not in _tuned:
        path = _cache_file(key).get_file("config.json")
        _tuned[key] = json.loads(Path(path).read_text()) if path else None
    return _tuned[key]


def configured(kernel: str, main: torch.Tensor, k: int, run: Callable[[Config], Any]) -> Any:
    """`run` with this kernel's configuration: the tuned one if `tuning` met this shape, else the table's.

    The same shapes on the same machine give the same configuration, so results repeat bit for bit.
    """
    table_key = _key(kernel, main.element_size(), int(k))
    config = table()[table_key]
    if INTERPRETED or type(main) not in PLAIN:
        return run(config)
    key = _tuned_key(table_key, *main.shape[-2:], main.get_device())
    best = _load_tuned(key)
    if best is None and _tuning and not torch.cuda.is_current_stream_capturing():
        best = _tuned[key] = _measure(_neighbours(config), run)
        _cache_file(key).put(json.dumps(best), "config.json", binary=False)
    return run(best or config)


def _neighbours(config: Config) -> list[Config]:
    """The table's configuration and those one step away from it."""
    steps: dict[str, Sequence[int]] = {
        "BLOCK_N": (config["BLOCK_N"], config["BLOCK_N"] * 2),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
    }
    if "SEGMENT" in config:
        steps["SEGMENT"] = (config["SEGMENT"], config["SEGMENT"] // 2)
    return [{**config, **dict(zip(steps, values, strict=True))} for values in product(*steps.values())]


def _measure(candidates: Sequence[Config], run: Callable[[Config], Any]) -> Config:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times: list[tuple[float, int]] = []
    for index, config in enumerate(candidates):
        try:
            times.append((do_bench(lambda config=config: run(config), warmup=5, rep=20), index))
        except OutOfResources:  # more shared memory or registers than this GPU has
            continue
    return candidates[min(times)[1]]


@contextmanager
def tuning() -> Iterator[None]:
    """Within the block a shape met for the first time is tuned; the result is kept on disk for later."""
    global _tuning
    previous, _tuning = _tuning, True
    try:
        yield
    finally:
        _tuning = previous
