"""The best match of each query: keys stream by, as in flash attention, and a maximum stays."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.common.launch import interpreting, launch_config, unit_stride
from tokenprune.ops.greedy_select.kernel import ROUNDING, SMALLEST, load_tile


@triton.jit
def _most_similar_fwd_kernel(
    queries,  # [B, Q, D], strided
    keys,  # [B, M, D], strided
    similarity,  # [B, Q] float32
    index,  # [B, Q] int64
    stride_qb,
    stride_qn,
    stride_kb,
    stride_kn,
    num_queries,
    num_keys,
    width,
    BLOCK_N: tl.constexpr,  # queries
    BLOCK_M: tl.constexpr,  # keys at a time
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    queries += crop * stride_qb
    keys += crop * stride_kb
    largest = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    winner = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, num_keys, BLOCK_M):
        column = start + tl.arange(0, BLOCK_M)
        products = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        query_squares = tl.zeros((BLOCK_N,), tl.float32)
        key_squares = tl.zeros((BLOCK_M,), tl.float32)
        for first in range(0, width, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            rows = load_tile(queries, row, channel, stride_qn, num_queries, width)
            columns = load_tile(keys, column, channel, stride_kn, num_keys, width)
            wide_rows, wide_columns = rows.to(tl.float32), columns.to(tl.float32)
            query_squares += tl.sum(wide_rows * wide_rows, 1)
            key_squares += tl.sum(wide_columns * wide_columns, 1)
            if UPCAST:  # the interpreter multiplies bfloat16 as integers
                rows, columns = wide_rows, wide_columns
            products = tl.dot(rows, tl.trans(columns), products, input_precision="ieee")
        query_norms = tl.maximum(tl.sqrt(query_squares), SMALLEST)
        key_norms = tl.maximum(tl.sqrt(key_squares), SMALLEST)
        found = products / query_norms[:, None] / key_norms[None, :]
        # Equal directions are equally similar, so that ties stay ties.
        found = tl.where(found > 1.0 - ROUNDING, 1.0, found)
        found = tl.where((column < num_keys)[None, :], found, -float("inf"))
        best = tl.max(found, 1)
        first_best = tl.min(tl.where(found == best[:, None], column[None, :], 0x7FFFFFFF), 1)
        better = best > largest
        winner = tl.where(better, first_best, winner)
        largest = tl.where(better, best, largest)
    line = crop * num_queries + row
    tl.store(similarity + line, largest, mask=row < num_queries)
    tl.store(index + line, winner.to(tl.int64), mask=row < num_queries)


def launch(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """[B, Q, D] and [B, M, D] -> ([B, Q] float32, [B, Q] int64)."""
    queries, keys = unit_stride(queries), unit_stride(keys)
    batch, num_queries, width = queries.shape
    similarity = queries.new_empty(batch, num_queries, dtype=torch.float32)
    index = queries.new_empty(batch, num_queries, dtype=torch.int64)
    config = launch_config("most_similar_fwd", keys)
    if batch:
        _most_similar_fwd_kernel[(batch, triton.cdiv(num_queries, config["BLOCK_N"]))](
            queries,
            keys,
            similarity,
            index,
            *queries.stride()[:2],
            *keys.stride()[:2],
            num_queries,
            keys.shape[1],
            width,
            UPCAST=interpreting(),
            **config,
        )
    return similarity, index
