"""Compile every Triton kernel ahead of time, without a GPU: ``python -m tests.aot_triton [--arch 80]``.

The launches are recorded from the ops' own host functions, run on fake tensors of the shapes of real models,
so what is compiled is what a GPU would be given. Prints registers, spills and shared memory of every kernel;
fails if one spills, asks for more shared memory than a block of that architecture can have, or has a buffer
overwritten that a product still reads.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from jair_kernels import (
    _triton_grad,
    _triton_hidden,
    _triton_inputs,
    _triton_mlp,
    _triton_norm,
    _triton_pool,
    _triton_rows,
)
from jair_kernels.add_norm import triton as add_norm
from jair_kernels.cross_attention import triton as attention
from jair_kernels.cross_attention import triton_grad as attention_grad
from jair_kernels.cross_attention import triton_once as attention_once
from jair_kernels.gate import triton as gate
from jair_kernels.gelu import triton as gelu
from jair_kernels.query_pool import triton as query_pool
from jair_kernels.query_pool import triton_softmax as query_pool_softmax
from jair_kernels.token_pool import triton as token_pool
from jair_kernels.tokenfuser import triton as tokenfuser
from jair_kernels.tokenlearner import triton as tokenlearner
from jair_kernels.tokenlearner.cost import keeps_hidden

# Bytes of shared memory of a block (CUDA C++ programming guide, specifications per compute capability).
SHARED = {80: 166912, 90: 232448, 100: 232448}

# N, D, H, K: ViT-B with 8, 16 and 111 tokens, RT-1 with 8 and 81, a wide ViT at high resolution, narrow and
# wide ones, an image whose pixels are the tokens.
SHAPES = (
    (196, 768, 64, 8),
    (196, 768, 64, 16),
    (196, 768, 64, 111),
    (81, 512, 64, 8),
    (100, 512, 64, 81),
    (1024, 1024, 64, 32),
    (196, 192, 64, 8),
    (196, 384, 64, 8),
    (196, 1280, 64, 16),
    (50176, 768, 64, 8),
)
# D and M of the layers whose rows add_norm and gelu take.
ROWS = ((768, 2048), (1024, 2816))
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.bool: "i1",
    torch.int32: "i32",
    torch.int64: "i64",
}
# N, D, K of absorbed resampling: 16 latents of a ViT-B with 12 heads, a wide ViT, and few queries.
QUERY_SHAPES = (
    (196, 768, 192),
    (1024, 1280, 512),
    (81, 512, 12),
)
# L, N, heads of q and of k, d of attention: to image tokens, in a layer, to a large image, wide heads.
ATTENTION_SHAPES = (
    (64, 196, 12, 12, 64),
    (128, 128, 12, 12, 64),
    (16, 196, 12, 12, 64),
    (64, 4964, 16, 4, 96),
    (32, 257, 12, 12, 128),
)
MODULES = (
    _triton_norm,
    _triton_hidden,
    _triton_inputs,
    _triton_mlp,
    _triton_grad,
    _triton_pool,
    _triton_rows,
    token_pool,
    tokenlearner,
    query_pool_softmax,
    add_norm,
    gate,
    gelu,
    attention,
    attention_grad,
    attention_once,
)


class Build(NamedTuple):
    """One specialisation of a kernel; hashable, so that shapes which share it compile it once."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, int], ...]


def specialise(kernel: Any, args: tuple[Any, ...], meta: dict[str, Any]) -> Build:
    """What triton's launcher makes of these arguments: types, constants, and which are divisible by 16."""
    options = tuple((name, meta.pop(name)) for name in ("num_warps", "num_stages") if name in meta)
    types, constants, aligned = {}, dict(meta), []
    for name, value in zip(kernel.arg_names, args, strict=False):
        if isinstance(value, torch.Tensor):
            types[name] = "*" + TYPES[value.dtype]
            aligned.append(name)
        elif isinstance(value, float):
            types[name] = "fp32"
        elif value == 1:
            constants[name] = 1
        else:
            types[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(name)
    signature = tuple((name, types.get(name, "constexpr")) for name in kernel.arg_names)
    module = kernel.fn.__module__
    return Build(
        module, kernel.fn.__name__, signature, tuple(sorted(constants.items())), tuple(aligned), options
    )


def call_ops(dtype: torch.dtype, n: int, d: int, h: int, k: int) -> None:
    """Every op, forward and backward, with masks and all parameters."""
    b = 64
    x, tokens, scores = (torch.empty(b, *size, dtype=dtype) for size in ((n, d), (k, d), (n, k)))
    w1, b1, w2, b2, scale, shift = (torch.empty(size, dtype=dtype) for size in ((h, d), h, (k, h), k, d, d))
    mask, parameters = torch.empty(b, n, dtype=torch.bool), (w1, b1, w2, b2, scale, shift)
    for sigmoid in (False, True):
        y, softmax = token_pool.forward(x, scores, mask, sigmoid, True)
        token_pool.backward(y, x, scores, mask, y, softmax, sigmoid, True)
    keep = keeps_hidden(dtype, d, h)
    y, softmax, stats, kept = tokenlearner.forward(x, *parameters, mask, 1e-6, True, keep)
    tokenlearner.backward(y, x, *parameters, mask, None, softmax, stats, kept, True)
    _triton_hidden.fold_and_dot(x, y, y, w1, b1, scale, shift)
    y, stats, kept = tokenfuser.forward(x, tokens, *parameters, 1e-6, True, keep)
    tokenfuser.backward(y, x, tokens, *parameters, stats, kept, True)


def call_attention(dtype: torch.dtype, l: int, n: int, h: int, h_kv: int, d: int) -> None:
    """With and without a mask and ranges, for a large batch and for one sample, whose keys are split."""
    for b, masked in ((64, False), (1, True)):
        q, k = torch.empty(b, l, h, d, dtype=dtype), torch.empty(b, n, h_kv, d, dtype=dtype)
        mask = torch.empty(b, n, dtype=torch.bool) if masked else None
        ranges = torch.empty(b, l, 2, dtype=torch.int32) if masked else None
        o, stats = attention.forward(q, k, k, mask, ranges, d**-0.5)
        attention.backward(o, q, k, k, mask, ranges, o, stats, d**-0.5, l == n)


def call_row_ops(dtype: torch.dtype, d: int, m: int) -> None:
    """add_norm, gelu and gate as the layers use them, with all parameters and with none."""
    r = 64 * 196
    x, stats = torch.empty(r, d, dtype=dtype), torch.empty(r, 2)
    scale, one = torch.empty(d, dtype=dtype), torch.empty(1, dtype=dtype)
    add_norm.forward(x, None, None, None, None, None, True, scale, scale, 1e-6)
    add_norm.forward(x, None, None, None, x, None, True, scale, scale, 1e-6)
    add_norm.forward(x, stats, scale, scale, x, scale, True, scale, scale, 1e-6)
    add_norm.forward(x, stats, None, None, x, one, False, None, None, 1e-6)
    for gradient in (None, x):
        add_norm.backward(x, gradient, x, stats, scale, scale)
    add_norm.backward(x, x, x, stats, None, None)
    weight, total = torch.empty(d, m, dtype=dtype), torch.empty(d)
    centre = torch.empty(m, dtype=dtype)
    gate.backward(weight, weight, total, scale, centre, one)
    gate.backward(weight, weight, total, scale, None, scale)
    gate.backward(weight, weight, None, None, None, one)
    h = torch.empty(r, m, dtype=dtype)
    for sums, tanh in product((False, True), (False, True)):
        gelu.forward(h, tanh)
        gelu.backward(h, h, tanh, sums)


def call_query_pool(dtype: torch.dtype, n: int, d: int, k: int) -> None:
    """Shared queries and all options; then none, with queries of every image."""
    for b, sets, norm in ((64, 1, True), (2, 2, False)):
        x, queries = torch.empty(b, n, d, dtype=dtype), torch.empty(sets, k, d, dtype=dtype)
        mask = torch.empty(b, n, dtype=torch.bool) if norm else None
        y, softmax, stats = query_pool.forward(x, queries, mask, norm, 1e-5)
        query_pool.backward(y, x, queries, mask, y, softmax, stats, norm)


def builds() -> Iterator[tuple[str, Build]]:
    """Every specialisation once, with the first case that needs it."""
    seen: set[Build] = set()
    found: list[Build] = []

    def record(kernel: Any, grid: Any, main: Any, *args: Any, **meta: Any) -> None:
        found.append(specialise(kernel, args, meta))

    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        for module in MODULES:
            stack.enter_context(patch.object(module, "launch", record))
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            calls = [(f"{n}x{d} K {k}", partial(call_ops, dtype, n, d, h, k)) for n, d, h, k in SHAPES]
            calls += [
                (f"{n}x{d} K {k}", partial(call_query_pool, dtype, n, d, k)) for n, d, k in QUERY_SHAPES
            ]
            for l, n, h, h_kv, d in ATTENTION_SHAPES:
                if dtype == torch.float32 and d > 64:
                    continue  # why_not refuses it
                calls.append((f"{l}x{n} d {d}", partial(call_attention, dtype, l, n, h, h_kv, d)))
            calls += [(f"D {d} M {m}", partial(call_row_ops, dtype, d, m)) for d, m in ROWS]
            for case, call in calls:
                found.clear()
                call()
                for build in found:
                    if build not in seen:
                        seen.add(build)
                        yield f"{TYPES[dtype]} {case}", build


def overwritten(ttgir: str) -> bool:
    """Whether Triton keeps too few buffers of what a product of Hopper's reads (its issue 6691).

    Such a product may be read for one turn of its loop more (`pendings`). So where `ahead` blocks are copied
    before the loop, one more than these has to have a buffer; each copy in the text but the loop's is ahead.
    """
    buffers: dict[str, tuple[int, list[str]]] = {}
    views: dict[str, tuple[int, list[str]]] = {}
    read: list[tuple[int, list[str]]] = []
    waiting: list[tuple[int, list[str]]] = []
    for line in ttgir.splitlines():
        if made := re.match(r" *(%\S+) = ttg\.local_alloc .*: \(\) -> !ttg\.memdesc<(\d+)x", line):
            buffers[made[1]] = int(made[2]), []  # names are used again in later loops
        elif view := re.match(r" *(%\S+) = ttg\.memdesc_\w+ (%\w+)", line):
            source = buffers.get(view[2]) or views.get(view[2])
            if source is None:
                views.pop(view[1], None)
            else:
                views[view[1]] = source
        elif copy := re.search(r"async_copy_global_to_local \S+, (%\w+)", line):
            if copy[1] in views:
                views[copy[1]][1].append(line)
        elif product := re.search(r"warp_group_dot (%\w+), (%\w+),", line):
            waiting += [views[operand] for operand in product.groups() if operand in views]
        elif wait := re.search(r"warp_group_dot_wait .*pendings = (\d+)", line):
            read += waiting if int(wait[1]) else []
            waiting = []
    return any(count < len(copies) for count, copies in read)


def compile_one(build: Build, arch: int) -> tuple[int, int, int, bool]:
    """(registers, bytes of spills, bytes of shared memory, `overwritten`) on an architecture."""
    kernel = getattr(sys.modules[build.module], build.kernel)
    index = {name: i for i, name in enumerate(kernel.arg_names)}
    constants = {(index[name],): value for name, value in build.constants}
    attributes = {(index[name],): [["tt.divisibility", 16]] for name in build.aligned}
    source = ASTSource(fn=kernel, signature=dict(build.signature), constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(build.options))
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    cubin = next(path for path in compiled.metadata_group.values() if str(path).endswith(".cubin"))
    printed = subprocess.run(
        [tool, "--dump-resource-usage", cubin], check=True, capture_output=True, text=True
    ).stdout
    used = re.findall(r"REG:(\d+) STACK:(\d+)", printed)  # the kernel and what it calls
    registers, stack = (max(int(number) for number in numbers) for numbers in zip(*used, strict=True))
    return registers, stack, compiled.metadata.shared, overwritten(compiled.asm["ttgir"])


def main() -> int:
    """Compile, print, and return the number of kernels that a GPU could not run well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=list(SHARED), choices=list(SHARED))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="only kernels whose module and name contain this")
    options = parser.parse_args()
    work = [
        (case, build, arch)
        for case, build in builds()
        for arch in options.arch
        if options.only in f"{build.module}.{build.kernel}"
    ]
    failures: list[str] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        results = pool.map(compile_one, [build for _, build, _ in work], [arch for _, _, arch in work])
        for (case, build, arch), (registers, stack, shared, race) in zip(work, results, strict=True):
            bad = stack > 0 or shared > SHARED[arch] or race
            name = f"{build.module.removeprefix('jair_kernels.')}.{build.kernel}"
            numbers = f"{registers:3} registers {stack:5} B spilled {shared:6} B shared"
            failed = "  RACE" if race else "  FAILED" if bad else ""
            line = f"sm_{arch} {case:22} {name:42} {numbers}{failed}"
            print(line, flush=True)
            if bad:
                failures.append(line)
    print(*failures, f"{len(work)} kernels compiled, {len(failures)} failed", sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
