"""Merging on the GPU: one program follows all pointers of a crop."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.common.launch import launch_config_of_crops

BLOCK = tl.constexpr(32)  # cells whose strongest neighbor is found at a time


@triton.jit
def strongest_neighbor(logits, cell, rows, cols):
    """[M, 16] logits (nine used) of M cells -> [M] the cell each leans towards."""
    slot = tl.arange(0, 16)[None, :]
    y, x = cell[:, None] // cols, cell[:, None] % cols
    logits = tl.where(slot < 9, logits, -float("inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]

    target_y = tl.minimum(tl.maximum(y + slot // 3 - 1, 0), rows - 1)
    target_x = tl.minimum(tl.maximum(x + slot % 3 - 1, 0), cols - 1)
    target = target_y * cols + target_x  # [M, 16]
    votes = tl.zeros_like(weights)
    for other in tl.static_range(9):  # offsets clamped to one cell add up, in slot order
        other_y = tl.minimum(tl.maximum(y + other // 3 - 1, 0), rows - 1)
        other_x = tl.minimum(tl.maximum(x + other % 3 - 1, 0), cols - 1)
        weight = tl.sum(tl.where(slot == other, weights, 0.0), 1)[:, None]
        votes += tl.where(target == other_y * cols + other_x, weight, 0.0)
    # NaN votes for the first cell, as an argmax that takes the first NaN does.
    votes = tl.where(votes == votes, votes, 2.0)
    votes = tl.where(slot < 9, votes, -1.0)
    best = tl.max(votes, 1)[:, None]
    return tl.min(tl.where(votes == best, target, rows * cols), 1)


@triton.jit
def jump(parents, doublings):
    """[N] parents -> roots after so many doublings, or fewer where none changes a pointer."""
    moving = doublings > 0
    while moving:
        further = tl.gather(parents, parents, 0)
        doublings -= 1
        moving = (doublings > 0) & (tl.max((further != parents).to(tl.int32), 0) != 0)
        parents = further
    return parents


@triton.jit
def merge_cycles(parents, cell, doublings):
    """[N] parents -> roots, each cycle joined under its lowest index; see `reference.py`."""
    lowest = cell
    moving = doublings > 0
    while moving:
        least = tl.minimum(lowest, tl.gather(lowest, parents, 0))
        further = tl.gather(parents, parents, 0)
        changed = (least != lowest) | (further != parents)
        doublings -= 1
        moving = (doublings > 0) & (tl.max(changed.to(tl.int32), 0) != 0)
        lowest, parents = least, further
    return tl.gather(lowest, parents, 0)


@triton.jit
def _background_merge_fwd_kernel(
    logits,  # [B, N, 9]
    parents,  # [B, N] int32 scratch
    roots,  # [B, N] int64
    rows,
    cols,
    doublings,
    PADDED: tl.constexpr,  # power of two, at least N
    MERGE: tl.constexpr,
):
    num_tokens = rows * cols
    first = tl.program_id(0).to(tl.int64) * num_tokens
    slot = tl.arange(0, 16)
    for start in range(0, num_tokens, BLOCK):
        cell = start + tl.arange(0, BLOCK)
        inside = cell < num_tokens
        tile = tl.load(
            logits + (first + cell)[:, None] * 9 + slot[None, :],
            mask=inside[:, None] & (slot < 9)[None, :],
            other=0.0,
        ).to(tl.float32)
        parent = strongest_neighbor(tile, tl.where(inside, cell, 0), rows, cols)
        tl.store(parents + first + cell, parent, mask=inside)
    tl.debug_barrier()  # pointers cross the tiles above
    cell = tl.arange(0, PADDED)
    parent = tl.load(parents + first + cell, mask=cell < num_tokens, other=0)
    parent = tl.where(cell < num_tokens, parent, cell)
    root = merge_cycles(parent, cell, doublings) if MERGE else jump(parent, doublings)
    tl.store(roots + first + cell, root.to(tl.int64), mask=cell < num_tokens)


def doublings_of(num_tokens: int, max_iters: int, cycles: str) -> int:
    """How often pointers double: as often as asked, or until every path has ended."""
    return max_iters if cycles == "official" else (num_tokens - 1).bit_length()


def launch_merge(logits: Tensor, grid_size: tuple[int, int], max_iters: int, cycles: str) -> Tensor:
    """[B, N, 9] logits -> [B, N] int64 roots."""
    batch, num_tokens, _ = logits.shape
    roots = logits.new_empty(batch, num_tokens, dtype=torch.int64)
    if batch:
        _background_merge_fwd_kernel[(batch,)](
            logits.contiguous(),
            torch.empty_like(roots, dtype=torch.int32),
            roots,
            *grid_size,
            doublings_of(num_tokens, max_iters, cycles),
            MERGE=cycles == "merge",
            **launch_config_of_crops("background_merge_fwd", logits, num_tokens),
        )
    return roots
