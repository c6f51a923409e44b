"""Softmax over tokens and its gradient in Triton, of scores that a matrix product has left in memory.

Each program takes a block of tokens and a chunk of the queries; what it knows of them, the largest score, the
sum of the exponentials below it and that of their products with dP, is joined in the order of the blocks.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from jair_kernels._triton import ceil_div, launch, padded
from jair_kernels._triton_pool import (
    exponentials,
    finish_softmax,
    mask_arguments,
    softmax_weights,
    store_softmax,
    tokens_kept,
)

Tensor = torch.Tensor


@triton.jit
def parts_kernel(
    scores, dweights, mask, parts, N, K, m_b, m_n, GRADIENT: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of a block of tokens the largest score, the sum of exponentials, and that of their products with dP."""
    chunks, blocks = tl.cdiv(K, BLOCK_K), tl.cdiv(N, BLOCK_N)
    place = (tl.program_id(0) // chunks).to(tl.int64)
    b, n = place // blocks, (place % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (tl.program_id(0) % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    at, inside = (b * N + n)[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
    s = tl.load(scores + at, mask=inside, other=0.0)
    top = tl.max(tl.where(keep[:, None], s, float("-inf")), 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = exponentials(s, base, keep)
    to = parts + place * 3 * K + k
    tl.store(to, top, mask=k < K)
    tl.store(to + K, tl.sum(weights, 0), mask=k < K)
    if GRADIENT:
        dp = tl.load(dweights + at, mask=inside, other=0.0)
        tl.store(to + 2 * K, tl.sum(weights * dp, 0), mask=k < K)


@triton.jit
def weights_kernel(
    scores, dweights, mask, parts, p, ds, softmax, N, K, m_b, m_n, GRADIENT: tl.constexpr,
    HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """P as the products take it; GRADIENT: also dS = P (dP - delta), delta = sum_n P dP, which is exactly dP
    for a single token; else max and 1/sum.
    """
    chunks, blocks = tl.cdiv(K, BLOCK_K), tl.cdiv(N, BLOCK_N)
    place = (tl.program_id(0) // chunks).to(tl.int64)
    b, block = place // blocks, place % blocks
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (tl.program_id(0) % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
    top = tl.full([BLOCK_K], float("-inf"), tl.float32)
    total, inner = tl.full([BLOCK_K], 0.0, tl.float32), tl.full([BLOCK_K], 0.0, tl.float32)
    for i0 in range(0, blocks, BLOCK_S):
        i = i0 + tl.arange(0, BLOCK_S)
        at = parts + (b * blocks + i)[:, None] * 3 * K + k[None, :]
        there = (i < blocks)[:, None] & (k < K)[None, :]
        tops = tl.load(at, mask=there, other=float("-inf"))
        larger = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        decay, share = tl.exp(top - base), tl.exp(tops - base[None, :])
        total = total * decay + tl.sum(share * tl.load(at + K, mask=there, other=0.0), 0)
        if GRADIENT:
            inner = inner * decay + tl.sum(share * tl.load(at + 2 * K, mask=there, other=0.0), 0)
        top = larger
    top, inverse = finish_softmax(top, total)
    keep = tokens_kept(mask, b, n, N, m_b, m_n, HAS_MASK)
    at, inside = (b * N + n)[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
    s = tl.load(scores + at, mask=inside, other=0.0)
    weights = softmax_weights(s, top, inverse, keep)
    tl.store(p + at, weights.to(p.dtype.element_ty), mask=inside)
    if GRADIENT:
        dp = tl.load(dweights + at, mask=inside, other=0.0)
        delta = inner / tl.where(total == 0, 1.0, total)
        tl.store(ds + at, (weights * (dp - delta[None, :])).to(ds.dtype.element_ty), mask=inside)
    else:
        store_softmax(softmax + 2 * b * K, k, tl.where(block == 0, K, 0), top, inverse)


def weights_of(scores: Tensor, mask: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """P [B,N,K] in the dtype of `like`, and of every softmax over N its max and 1/sum [B,K,2]."""
    b, _n, k = scores.shape
    softmax = like.new_empty((b, k, 2), dtype=torch.float32)
    return _launch_both(scores, None, mask, like, softmax)[0], softmax


def score_gradient(
    scores: Tensor, dweights: Tensor, mask: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """P and dS [B,N,K] in the dtype of `like`, from scores and dP."""
    return _launch_both(scores, dweights, mask, like, scores)


def _launch_both(
    scores: Tensor, dweights: Tensor | None, mask: Tensor | None, like: Tensor, softmax: Tensor
) -> tuple[Tensor, Tensor]:
    b, n, k = scores.shape
    columns = padded(k, at_most=64)
    sizes = {"BLOCK_N": 2048 // columns, "BLOCK_K": columns, "num_warps": 4}
    blocks, chunks = ceil_div(n, sizes["BLOCK_N"]), ceil_div(k, columns)
    p = like.new_empty((b, n, k))
    ds = p if dweights is None else like.new_empty((b, n, k))
    parts = like.new_empty((b, blocks, 3, k), dtype=torch.float32)
    mask_or_scores, *strides = mask_arguments(mask, scores)
    given = (scores, scores if dweights is None else dweights, mask_or_scores, parts)
    has: dict[str, Any] = {"GRADIENT": dweights is not None, "HAS_MASK": mask is not None, **sizes}
    grid = (b * blocks * chunks,)
    launch(parts_kernel, grid, like, *given, n, k, *strides, **has)
    launch(weights_kernel, grid, like, *given, p, ds, softmax, n, k, *strides, **has, BLOCK_S=8)
    return p, ds
