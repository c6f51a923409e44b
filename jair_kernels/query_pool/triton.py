"""query_pool in Triton: one program scores a segment of tokens by a chunk of the queries and pools it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jair_kernels._triton import Config, ceil_div, configured, launch, precision, rows_contiguous, symbolic
from jair_kernels._triton_loops import before_copies
from jair_kernels._triton_pool import (
    add_to_softmax,
    exponentials,
    finish_softmax,
    mask_arguments,
    merge,
    parts_of,
    split_tokens,
    store_softmax,
    tokens_kept,
)
from jair_kernels.query_pool.triton_grad import backward
from jair_kernels.query_pool.triton_rows import (
    MAX_CHUNK,
    query_stride,
    read_statistics,
    read_tokens,
    statistics,
    times_rows,
)

__all__ = ["backward", "forward"]

Tensor = torch.Tensor


@triton.jit
def forward_kernel(
    x, queries, mask, stats, scores, y, softmax, N, D, K, x_b, x_n, q_b, m_b, m_n, splits, segment,
    NORM: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Scores of one segment into memory, their softmax, then the pooled columns, BLOCK_P at a time."""
    chunks = tl.cdiv(K, BLOCK_K)
    place = (tl.program_id(0) // chunks).to(tl.int64)
    b, begin = place // splits, (place % splits) * segment
    end = tl.minimum(begin + segment, N)
    k = (tl.program_id(0) % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
    x_image, q_image = x + b * x_b, queries + b * q_b
    top, total = tl.full([BLOCK_K], float("-inf"), tl.float32), tl.full([BLOCK_K], 0.0, tl.float32)
    for n0 in range(begin, end, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
        keep, row = tokens_kept(mask, b, n, end, m_b, m_n, HAS_MASK), b * N + n
        mean, rstd = read_statistics(stats, row, keep, NORM)
        s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        before_copies()
        for d0 in range(0, D, BLOCK_D):
            d = d0 + tl.arange(0, BLOCK_D)
            xt = read_tokens(x_image + n * x_n, keep, mean, rstd, d, D, NORM)
            s = times_rows(s, xt, q_image, k, d, D, K, PRECISION)
        tl.store(scores + row[:, None] * K + k[None, :], s, mask=(n < end)[:, None] & (k < K)[None, :])
        top, total = add_to_softmax(top, total, tl.where(keep[:, None], s, float("-inf")))
    top, inverse = finish_softmax(top, total)
    store_softmax(softmax + 2 * place * K, k, K, top, inverse)
    tl.debug_barrier()  # the scores just written are read below by other threads
    for d0 in range(0, D, BLOCK_P):
        d = d0 + tl.arange(0, BLOCK_P)
        acc = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
        before_copies()
        for n0 in range(begin, end, BLOCK_N):
            n = n0 + tl.arange(0, BLOCK_N).to(tl.int64)
            keep, row = tokens_kept(mask, b, n, end, m_b, m_n, HAS_MASK), b * N + n
            mean, rstd = read_statistics(stats, row, keep, NORM)
            inside = keep[:, None] & (k < K)[None, :]
            s = tl.load(scores + row[:, None] * K + k[None, :], mask=inside, other=float("-inf"))
            xt = read_tokens(x_image + n * x_n, keep, mean, rstd, d, D, NORM)
            weights = exponentials(s, top, keep).to(xt.dtype)
            acc = tl.dot(tl.trans(weights), xt, acc, input_precision=PRECISION)
        # 1/sum from memory, behind the barrier: kept in registers beside acc it would spill.
        acc *= tl.load(softmax + 2 * (place * K + k) + 1, mask=k < K, other=0.0)[:, None]
        out = y + (place * K + k)[:, None] * D + d[None, :]
        tl.store(out, acc.to(y.dtype.element_ty), mask=(k < K)[:, None] & (d < D)[None, :])


def forward(
    x: Tensor, queries: Tensor, mask: Tensor | None, norm: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The op's forward: y [B,K,D] in x's dtype, max and 1/sum [B,K,2] and stats (with `norm` [B,N,2])."""
    (b, n, d), k = x.shape, queries.shape[1]
    y, softmax = x.new_empty((b, k, d)), x.new_empty((b, k, 2), dtype=torch.float32)
    if not symbolic(b) and b == 0:
        return y, softmax, x.new_empty((b, n, 2) if norm else (0,), dtype=torch.float32)
    x, queries = rows_contiguous(x), queries.contiguous()
    stats = statistics(x, mask, norm, eps)
    scores = x.new_empty((b, n, k), dtype=torch.float32)

    def run(config: Config) -> tuple[Tensor, Tensor, Tensor]:
        chunks = ceil_div(k, config["BLOCK_K"])
        splits, segment = split_tokens(b, n, chunks, config)
        parts, part_softmax, merged = parts_of(y, softmax, splits)
        blocks = {name: size for name, size in config.items() if name != "SEGMENT"}
        mask_or_x, *mask_strides = mask_arguments(mask, x)
        launch(
            forward_kernel, (b * splits * chunks,), x, x, queries, mask_or_x, stats if norm else x, scores,
            parts, part_softmax, n, d, k, *x.stride()[:2], query_stride(queries), *mask_strides, splits,
            segment, NORM=norm, HAS_MASK=mask is not None, PRECISION=precision(x), **blocks,
        )  # fmt: skip
        if merged:
            merge(parts, part_softmax, mask, n, y, softmax, False)
        return y, softmax, stats

    result: tuple[Tensor, Tensor, Tensor] = configured("query_pool_forward", x, min(k, MAX_CHUNK), run)
    return result
