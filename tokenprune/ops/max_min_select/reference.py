"""Greedy max-min diversity, a few crops at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.cosine import cosine_distance, cosine_matrix
from tokenprune.ops.common.precision import BLOCK_CROPS, wide_dtype, without_autocast


@without_autocast
@torch.no_grad()
def max_min_order(features: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """[B, N, D] -> [B, K] tokens as chosen, and [B, K] how far each was from those before it."""
    batch, num_tokens, _ = features.shape
    dtype = wide_dtype(features.dtype)
    order = torch.empty(batch, num_keep, dtype=torch.int64, device=features.device)
    distances = features.new_empty(batch, num_keep, dtype=dtype)
    # One memory for all crops: what is new to the process is slow to touch.
    scratch = features.new_empty(min(batch, BLOCK_CROPS), num_tokens, num_tokens, dtype=dtype)
    for start in range(0, batch, BLOCK_CROPS):
        some = slice(start, start + BLOCK_CROPS)
        _fill_order(cosine_matrix(features[some], scratch), order[some], distances[some])
    return order, distances


def _fill_order(similarity: Tensor, order: Tensor, distances: Tensor) -> None:
    """[B, N, N] cosines, which change on their diagonals -> writes `order` and `distances`."""
    similarity.diagonal(dim1=1, dim2=2).fill_(-1)  # none is near to itself
    crops = torch.arange(len(similarity), device=similarity.device)
    nearest = cosine_distance(similarity.amax(2))  # of the first: the distance to any other
    for step in range(order.shape[1]):
        distances[:, step], best = nearest.max(1)  # the first of equals
        order[:, step] = best
        to_best = cosine_distance(similarity[crops, best])
        nearest = torch.minimum(nearest, to_best, out=nearest) if step else to_best
        nearest.scatter_(1, order[:, : step + 1], -torch.inf)
