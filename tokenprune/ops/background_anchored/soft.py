"""Assignments that a gradient passes through: the affinity head's walk, and where it stops.

The hard assignment follows each token's strongest pointer. Here every token walks at random over
its neighbors with the head's own probabilities, and stops with the probability that it points at
itself. The chance to stop at a kept root takes the place of the hard membership. As the temperature
falls, walks become the pointers, and chances become the assignment of `cycles="merge"`; a token of
`cycles="official"` that leans on a split cycle ends at the first root on its way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.ops.background_merge.reference import neighbor_tables
from tokenprune.ops.common.precision import wide_dtype

CENTER = 4  # of the nine neighbors, the token itself


def neighbor_weights(logits: Tensor, grid_size: tuple[int, int], temperature: float) -> Tensor:
    """[B, N, 9] logits -> [B, N, 9] probabilities by true offset, 0 for those beyond the border.

    Neighbors beyond the border count for the cell that they are clamped to.
    """
    rows, cols = grid_size
    cells, _ = neighbor_tables(grid_size, logits.device)
    own = torch.arange(rows * cols, device=logits.device)[:, None]
    down, right = cells // cols - own // cols, cells % cols - own % cols
    slots = (down + 1) * 3 + right + 1
    weights = (logits / temperature).softmax(-1)
    return torch.zeros_like(weights).scatter_add(-1, slots.expand_as(weights), weights)


def soft_membership(
    weights: Tensor, roots: Tensor, keep_indices: Tensor, valid: Tensor, grid_size: tuple[int, int]
) -> Tensor:
    """[B, N, K]: each token's chance to stop at each kept root.

    Solves A = stop + move A in rows + cols steps from the hard assignment, where walks longer than
    that end. Each step keeps one [B, N, K] for the backward pass.
    """
    rows, cols = grid_size
    moves = torch.cat([weights[..., :CENTER], weights[..., CENTER + 1 :]], dim=-1)
    stops = weights[..., CENTER]
    # A root on a cycle points at another; there a walk has to stop, or it never would.
    is_root = torch.zeros_like(roots, dtype=torch.bool).scatter(1, roots, True)
    on_cycle = is_root & (moves.amax(-1) > stops)
    stops = torch.where(on_cycle, torch.ones_like(stops), stops)
    moves = torch.where(on_cycle[..., None], torch.zeros_like(moves), moves)

    tokens = torch.arange(roots.shape[1], device=roots.device)[None, :, None]
    here = (tokens == keep_indices[:, None]) & valid[:, None]
    stopped = (stops[..., None] * here).unflatten(1, grid_size)
    moves = moves.unflatten(1, grid_size)[..., None]  # [B, rows, cols, 8, 1]
    offsets = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    chances = hard_membership(roots, keep_indices, valid, weights.dtype).unflatten(1, grid_size)
    for _ in range(rows + cols):
        framed = functional.pad(chances, (0, 0, 1, 1, 1, 1))
        chances = stopped
        for slot, (i, j) in enumerate(offsets):
            chances = chances + moves[:, :, :, slot] * framed[:, i : i + rows, j : j + cols]
    return chances.flatten(1, 2)


def hard_membership(
    roots: Tensor, keep_indices: Tensor, valid: Tensor, dtype: torch.dtype
) -> Tensor:
    """[B, N, K]: 1 where a token's root is the kept one."""
    return ((roots[..., None] == keep_indices[:, None]) & valid[:, None]).to(dtype)


def weighted_mean(membership: Tensor, values: Tensor) -> Tensor:
    """[B, N, K], [B, N, D] -> [B, K, D] in the wide dtype; zero where nobody belongs."""
    totals = membership.sum(1)[..., None]
    sums = membership.mT @ values.to(wide_dtype(values.dtype))
    return sums / totals.where(totals > 0, torch.ones_like(totals))
