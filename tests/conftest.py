"""Fixtures of all tests: every dtype on every instruction set that the processor has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import pytest
import torch

from jair_kernels import _library
from jair_kernels.testing import ISAS, Case, Expectation, available_isas, cpu_isa

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small shapes gain nothing from threads; tests/test_threads.py asks for them."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)


@pytest.fixture(params=FLOATS, ids=dtype_name)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if _library.load_error is not None:
        pytest.skip(_library.load_error)
    if request.param not in available_isas():
        pytest.skip(f"this processor has no {request.param}, at most {available_isas()[-1]}")
    with cpu_isa(request.param):
        yield request.param


# Tiles multiply bfloat16 alone: for other dtypes these are "avx512".
_TILES = ("avx512_bf16", "amx")
_TARGETS = [(d, i) for d in FLOATS for i in ISAS if i not in _TILES or d is torch.bfloat16]


@pytest.fixture(params=_TARGETS, ids=lambda target: f"{dtype_name(target[0])}-{target[1]}")
def target_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Every dtype with every instruction set that computes it differently, the latter switched on."""
    dtype, isa = request.param
    if _library.load_error is not None:
        pytest.skip(_library.load_error)
    if isa not in available_isas():
        pytest.skip(f"this processor has no {isa}, at most {available_isas()[-1]}")
    with cpu_isa(isa):
        yield dtype


@pytest.fixture(scope="session")
def expectation() -> Callable[[Case, torch.dtype], Expectation]:
    """The float64 reference of a case, computed once for the instruction sets that follow one another."""
    cases: dict[str, Case] = {}

    @lru_cache(maxsize=8)
    def of(key: str, dtype: torch.dtype) -> Expectation:
        return Expectation.of(cases[key].sample(dtype))

    def get(case: Case, dtype: torch.dtype) -> Expectation:
        key = f"{case.op}-{case.name}"
        cases[key] = case
        return of(key, dtype)

    return get
