"""Greedy max-min diversity, a few crops at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_distance, cosine_matrix
from tokenprune.ops.precision import BLOCK_CROPS, without_autocast


@without_autocast
@torch.no_grad()
def max_min_order(features: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """[B, N, D] -> [B, K] tokens as chosen, and [B, K] how far each was from those before it."""
    parts = [_order(crops, num_keep) for crops in features.split(BLOCK_CROPS)]
    orders, distances = zip(*parts, strict=True)
    return torch.cat(orders), torch.cat(distances)


def _order(features: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    similarity = cosine_matrix(features)
    similarity.diagonal(dim1=1, dim2=2).fill_(-1)  # none is near to itself
    crops = torch.arange(len(features), device=features.device)
    kept = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
    order, distances = [], []

    nearest = cosine_distance(similarity.amax(2))  # of the first: the distance to any other
    for step in range(num_keep):
        best = nearest.masked_fill(kept, -torch.inf).argmax(1)
        order.append(best)
        distances.append(nearest[crops, best])
        kept[crops, best] = True
        to_best = cosine_distance(similarity[crops, best])
        nearest = torch.minimum(nearest, to_best) if step else to_best
    if not order:
        empty = nearest[:, :0]
        return empty.long(), empty
    return torch.stack(order, 1), torch.stack(distances, 1)
