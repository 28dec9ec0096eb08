"""Strongest neighbor, then pointer jumping."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.precision import without_autocast


def neighbor_tables(grid_size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell of the grid its nine neighbors, clamped to the grid, as two [N, 9] tables.

    The first holds the neighbor's cell index. At borders several of the nine name one cell; the
    second holds, for each, the first of the nine that names the same cell.
    """
    rows, cols = grid_size
    offsets = torch.arange(-1, 2, device=device)
    y = (torch.arange(rows, device=device)[:, None] + offsets).clamp(0, rows - 1)  # [rows, 3]
    x = (torch.arange(cols, device=device)[:, None] + offsets).clamp(0, cols - 1)  # [cols, 3]
    cells = (y[:, None, :, None] * cols + x[None, :, None, :]).reshape(rows * cols, 9)
    first = (cells[:, :, None] == cells[:, None, :]).int().argmax(-1)
    return cells, first


def strongest_neighbor(logits: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """[B, N, 9] logits -> [B, N] int64 parents; ties go to the lowest cell index."""
    cells, first = neighbor_tables(grid_size, logits.device)
    # Softmax over nine is many times faster where the nine are not the last dimension.
    weights = logits.mT.softmax(1).mT.contiguous()
    # Slots that name the same cell add up in the first of them, in slot order. First slots come in
    # ascending cell order and argmax takes the first maximum, so ties fall to the lowest cell.
    weights = torch.zeros_like(weights).scatter_add_(-1, first.expand_as(weights), weights)
    return cells.expand_as(weights).gather(-1, weights.argmax(-1, keepdim=True)).squeeze(-1)


@without_autocast
@torch.no_grad()
def background_merge(
    logits: Tensor, grid_size: tuple[int, int], max_iters: int, cycles: str
) -> Tensor:
    parents = strongest_neighbor(logits, grid_size)
    if cycles == "official":
        return jump(parents, max_iters)
    return merge_cycles(parents)


def jump(parents: Tensor, max_iters: int) -> Tensor:
    """`max_iters` doublings; a cycle of three or more never settles, what it holds then counts."""
    roots = parents
    for _ in range(max_iters):
        roots = roots.gather(1, roots)
    return roots


def merge_cycles(parents: Tensor) -> Tensor:
    """Every tree hangs on one cycle (a root is a cycle of one): its lowest index is the root."""
    num_tokens = parents.shape[1]
    lowest = torch.arange(num_tokens, device=parents.device).expand_as(parents)
    reached = parents
    for _ in range((num_tokens - 1).bit_length()):
        # `lowest` is the minimum over the path's first 2^i cells, `reached` the cell after them.
        lowest = torch.minimum(lowest, lowest.gather(1, reached))
        reached = reached.gather(1, reached)
    # After N steps or more every path is on its cycle, and the path from there is the cycle itself.
    return lowest.gather(1, reached)
