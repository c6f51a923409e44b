"""The C++ building blocks against numpy, over their whole input range and on every instruction set.

tests/csrc/blocks.cpp binds them; it is compiled here, once, into build/blocks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from jair_kernels.testing import ISAS, available_isas

pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
special = pytest.importorskip("scipy.special", reason="scipy is not installed")

ROOT = Path(__file__).parents[1]
FLAGS = ["-shared", "-fPIC", "-O2", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-w"]


@pytest.fixture(scope="session")
def library():
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler: g++ is not installed, and CXX names none")
    sources = [*sorted((ROOT / "csrc/cpu").glob("*.h")), *sorted((ROOT / "tests/csrc").glob("*"))]
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources) + sys.version.encode()).hexdigest()[:16]
    target = ROOT / "build" / "blocks" / digest / "jair_blocks.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        folders = [
            ROOT / "csrc",
            ROOT / "tests/csrc",
            pybind11.get_include(),
            sysconfig.get_paths()["include"],
        ]
        command = [
            compiler,
            *FLAGS,
            *(f"-I{folder}" for folder in folders),
            str(ROOT / "tests/csrc/blocks.cpp"),
        ]
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(partial)], check=True)
        partial.rename(target)  # whole or not at all, also for a second process
    spec = importlib.util.spec_from_file_location("jair_blocks", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=ISAS)
def blocks(request, library):
    if request.param not in available_isas():
        pytest.skip(f"this processor has no {request.param}, at most {available_isas()[-1]}")
    return getattr(library, request.param)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def points(low, high, dtype, count=300_001):
    """Evenly spaced, and every magnitude down to the subnormals; the count is no multiple of any vector."""
    with np.errstate(under="ignore"):
        tiny = np.geomspace(np.finfo(dtype).smallest_subnormal, 1, 2001).astype(dtype)
    everywhere = np.concatenate([np.linspace(low, high, count), tiny, -tiny, [0.0, -0.0]]).astype(dtype)
    return everywhere[(everywhere >= low) & (everywhere <= high)]


def wide(x):
    """In the next larger precision."""
    return x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)


def ulps(ours, exact):
    """The error in spacings of the result's dtype, also where that is subnormal."""
    with np.errstate(all="ignore"):
        spacing = wide(np.spacing(np.abs(exact).astype(ours.dtype)))
        return np.abs(wide(ours) - exact) / spacing


def spacings_of_one(ours, exact):
    """The error relative to max(1, |exact|), in spacings of 1: for functions that pass through zero."""
    return np.abs(wide(ours) - exact) / np.maximum(1, np.abs(exact)) / np.finfo(ours.dtype).eps


# --- Functions

# Bounds are in units in the last place, or in spacings of 1 where a function passes through zero. The tanh
# form of GELU' multiplies s (1 - s), a difference, by up to 25 in float32 and 60 in float64.


def test_exp(blocks, dtype):
    function = getattr(blocks, dtype.__name__).exp
    x = points(-120 if dtype == np.float32 else -760, 88.7 if dtype == np.float32 else 709.7, dtype)
    assert ulps(function(x), np.exp(wide(x))).max() <= 1
    assert (function(np.array([710, 1e30, np.inf], dtype)) == np.inf).all()
    assert (function(np.array([-np.inf, -1e30], dtype)) == 0).all()
    assert np.isnan(function(np.array([np.nan], dtype))).all()


def test_weight_of_a_softmax_in_16_bits(blocks):
    """Fewer terms and one rounding of x log2(e): some hundredths of the rounding to float16."""
    x = points(-130, 0.01, np.float32)
    ours, exact = blocks.halves.exp_of_score(x), np.exp(wide(x))
    relative = np.abs(ours - exact) / exact
    assert relative[x > -10].max() <= 2e-6
    assert relative[x > -80].max() <= 1e-5
    assert np.abs(ours - exact)[x <= -80].max() <= 1e-40
    assert (blocks.halves.exp_of_score(np.array([-np.inf, -1e30], np.float32)) == 0).all()
    assert np.isnan(blocks.halves.exp_of_score(np.array([np.nan], np.float32))).all()


def test_sigmoid(blocks, dtype):
    function, last = getattr(blocks, dtype.__name__).sigmoid, 86.9 if dtype == np.float32 else 699
    x = points(-last, last, dtype)
    assert ulps(function(x), 1 / (1 + np.exp(-wide(x)))).max() <= 3
    far = np.array([-np.inf, -1e30, -800, 800, 1e30, np.inf], dtype)
    tiny = 2e-38 if dtype == np.float32 else 1e-304  # what it stops at: no division by infinity
    assert np.abs(function(far) - (far > 0)).max() <= tiny
    assert np.isnan(function(np.array([np.nan], dtype))).all()


def test_reciprocal(blocks, dtype):
    x = np.concatenate([points(1e-3, 1e3, dtype), np.geomspace(1, 1e30, 5001).astype(dtype)])
    assert ulps(getattr(blocks, dtype.__name__).reciprocal(x), 1 / wide(x)).max() <= 1.5


def test_absolute(blocks, dtype):
    x = np.concatenate([points(-1e3, 1e3, dtype), np.array([np.inf, -np.inf], dtype)])
    assert (getattr(blocks, dtype.__name__).absolute(x) == np.abs(x)).all()


def test_normal_distribution(blocks, dtype):
    x = points(-40, 40, dtype)
    exact = special.ndtr(x.astype(np.float64))
    ours = getattr(blocks, dtype.__name__).normal(x)
    assert spacings_of_one(ours, exact).max() <= 1.5
    assert ulps(ours, exact)[x > -12].max() <= 80  # the far tail: e^(-x^2/2) multiplies a rounding by x^2


def gelu_tanh(x):
    linear = 2 * np.sqrt(2 / np.pi, dtype=x.dtype)
    u = linear * (x + x.dtype.type("0.044715") * x**3)
    with np.errstate(over="ignore"):
        s, rest = 1 / (1 + np.exp(-u)), 1 / (1 + np.exp(u))
    return x * s, s + x * s * rest * linear * (1 + 3 * x.dtype.type("0.044715") * x**2)


def gelu_erf(x):
    x = x.astype(np.float64)
    return x * special.ndtr(x), special.ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


# Bounds of GELU and its slope in float32 and float64; the erf form in float64 is compared with float64.
GELUS = {"gelu_tanh": (gelu_tanh, (1.5, 1.5), (20, 50)), "gelu_erf": (gelu_erf, (1.5, 2), (1.5, 2))}


@pytest.mark.parametrize("name", GELUS)
def test_gelu(name, blocks, dtype):
    definition, *bounds = GELUS[name]
    value_bound, slope_bound = (bound[dtype == np.float64] for bound in bounds)
    functions = getattr(blocks, dtype.__name__)
    x = points(-40, 40, dtype)
    value, slope = definition(wide(x))
    ours = getattr(functions, name)(x)
    assert spacings_of_one(ours, value).max() <= value_bound
    assert ulps(ours, value)[x > 0].max() <= 5
    assert spacings_of_one(getattr(functions, name + "_slope")(x), slope).max() <= slope_bound
    large = np.array([1e3, 1e30, np.finfo(dtype).max, np.inf], dtype)
    assert (getattr(functions, name)(large) == large).all()
    assert np.abs(getattr(functions, name)(-large[:-1])).max() <= 1e-30
    assert (getattr(functions, name + "_slope")(large) == 1).all()
    assert np.abs(getattr(functions, name + "_slope")(-large)).max() <= 1e-30
    for function in (name, name + "_slope"):
        assert np.isnan(getattr(functions, function)(np.array([np.nan], dtype))).all()


# --- 16-bit floats: every bit pattern

PATTERNS = np.arange(2**16, dtype=np.uint32).astype(np.uint16)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("name", GELUS)
def test_gelu_of_every_pattern(name, kind, blocks):
    """Shorter polynomials: some hundredths of the rounding to float16."""
    x = exact_width(PATTERNS, kind)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        value, slope = GELUS[name][0](x.astype(np.float64))
    ours, ours_slope = (getattr(blocks.halves, name + part)(x) for part in ("", "_slope"))
    with np.errstate(all="ignore"):
        relative = np.abs(ours - value) / np.abs(value)
    assert np.nanmax(relative[x > -6]) <= 4e-6
    assert np.abs(ours - value)[x <= -6].max() <= 1e-10
    assert np.abs(ours_slope - slope).max() <= 2e-6
    edges = np.array([np.inf, np.nan], np.float32)
    for function, most in ((name, np.inf), (name + "_slope", 1)):
        largest, nan = getattr(blocks.halves, function)(edges)
        assert largest == most
        assert np.isnan(nan)


def exact_width(bits, kind):
    return (
        bits.view(np.float16).astype(np.float32)
        if kind == "f16"
        else (bits.astype(np.uint32) << 16).view(np.float32)
    )


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_widen_every_pattern(kind, blocks):
    ours, exact = getattr(blocks, f"widen_{kind}")(PATTERNS), exact_width(PATTERNS, kind)
    nan = np.isnan(exact)
    assert (ours.view(np.uint32) == exact.view(np.uint32))[~nan].all()
    assert np.isnan(ours[nan]).all()


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_narrow_gives_every_pattern_back(kind, blocks):
    exact = exact_width(PATTERNS, kind)
    ours, nan = getattr(blocks, f"narrow_{kind}")(exact), np.isnan(exact)
    assert (ours == PATTERNS)[~nan].all()
    assert np.isnan(exact_width(ours[nan], kind)).all()


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_narrow_rounds_to_nearest_even(kind, blocks):
    """Halfway between neighbours, one float32 beside it, random bits: subnormals and overflow too."""
    spread = PATTERNS.astype(np.uint32) << 16
    near = [spread + offset for offset in (0x7FFF, 0x8000, 0x8001, 0x1000, 0x0FFF, 0x1001, 0x3000, 0xFFFF)]
    random = np.random.default_rng(0).integers(0, 2**32, 1_000_003, dtype=np.uint32)
    values = np.concatenate([*near, random]).astype(np.uint32).view(np.float32)
    halves = exact_width(PATTERNS, "f16")
    finite = np.unique(halves[np.isfinite(halves)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    edges = np.array(
        [65519.996, 65520, 65536, 1e38, -65520, 2.0**-25, 2.0**-26, np.inf, -np.inf, np.nan], np.float32
    )
    values = np.concatenate([values, middles, np.nextafter(middles, np.float32(np.inf)), edges])
    ours = getattr(blocks, f"narrow_{kind}")(values)
    target = torch.bfloat16 if kind == "bf16" else torch.float16
    exact = torch.from_numpy(values).to(target).view(torch.int16).numpy().view(np.uint16)
    nan = np.isnan(values)
    assert (ours == exact)[~nan].all()
    assert np.isnan(exact_width(ours[nan], kind)).all()


# --- Reductions, products, plans


def test_sum_and_larger_of_part_of_a_vector(blocks, dtype):
    functions = getattr(blocks, dtype.__name__)
    a, b = np.random.default_rng(1).integers(-1000, 1000, (2, functions.lanes)).astype(dtype)
    for count in range(1, functions.lanes + 1):
        assert functions.sum(a[:count]) == a[:count].sum()
        assert (functions.larger(a[:count], b[:count]) == np.maximum(a[:count], b[:count])).all()


SIZES = [
    *product((1, 5, 6, 7, 13), (1, 15, 16, 17, 63, 97), (1, 2, 33)),
    (3, 70, 129),
    (14, 130, 300),
    (1, 1, 1000),
]


@pytest.mark.parametrize("layout", ["rows", "columns", "every_second"])
def test_gemm(layout, blocks, dtype):
    """Whole numbers, so that every order of the sums gives the same bits."""
    random = np.random.default_rng(2)
    gemm = getattr(blocks, dtype.__name__).gemm
    for m, n, k in SIZES:
        a, b, c = (random.integers(-8, 9, shape).astype(dtype) for shape in ((m, k), (k, n), (m, n)))
        if layout == "columns":
            a = np.asfortranarray(a)
        elif layout == "every_second":
            a = np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, ::2]
        for add, packed in product((False, True), repeat=2):
            assert (gemm(a, b, c, add, packed) == a @ b + add * c).all(), (m, n, k, add, packed)


def test_gemm_rounds_like_blocks_of_sums(blocks):
    """A sum of 50000 terms loses no more than a few spacings: it is made of short sums."""
    a, b = np.random.default_rng(3).random((2, 50_000)).astype(np.float32)
    exact = wide(a) @ wide(b)
    ours = blocks.float32.gemm(a[None], b[:, None], np.zeros((1, 1), np.float32), False, False)
    assert abs(wide(ours)[0, 0] - exact) <= 16 * np.finfo(np.float32).eps * exact


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 4), (5, 8), (17, 33), (64, 7)])
def test_transpose(shape, blocks, dtype):
    x = np.random.default_rng(4).random(shape).astype(dtype)
    assert (getattr(blocks, dtype.__name__).transpose(x) == x.T).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [0, 1, 2, 5])
@pytest.mark.parametrize("tokens", [1, 16, 17, 197])
def test_plan_covers_every_token_once(batch, tokens, threads, library):
    segments = library.plan(batch, tokens, threads, 16)
    covered = np.zeros((batch, tokens), int)
    for _, image, begin, end, _ in segments:
        assert begin % 16 == 0
        covered[image, begin:end] += 1
    assert (covered == 1).all()
    parts = [(partial, image, begin) for _, image, begin, _, partial in segments if partial >= 0]
    assert [p[0] for p in sorted(parts, key=lambda p: p[1:])] == list(range(len(parts)))
    for _, _, begin, end, partial in segments:
        assert (partial == -1) == (begin == 0 and end == tokens)
    loads = np.bincount([s[0] for s in segments], weights=[-(-(s[3] - s[2]) // 16) for s in segments])
    assert batch == 0 or loads.max() - loads.min() <= 1
