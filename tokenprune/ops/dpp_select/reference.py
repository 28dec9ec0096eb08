"""Greedy MAP of a determinantal point process by incremental Cholesky, a few crops at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_matrix, rounding_of
from tokenprune.ops.precision import BLOCK_CROPS, without_autocast


@without_autocast
@torch.no_grad()
def dpp_order(features: Tensor, quality: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """[B, N, D] and [B, N] -> [B, K] tokens as chosen, and [B, K] the factor each brought."""
    pairs = zip(features.split(BLOCK_CROPS), quality.split(BLOCK_CROPS), strict=True)
    parts = [_order(crops, weights, num_keep) for crops, weights in pairs]
    orders, gains = zip(*parts, strict=True)
    return torch.cat(orders), torch.cat(gains)


def _order(features: Tensor, quality: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    similarity = cosine_matrix(features)
    quality = quality.to(similarity.dtype)
    nothing = rounding_of(similarity.dtype) * quality.square()
    batch, num_tokens, _ = features.shape
    crops = torch.arange(batch, device=features.device)
    kept = torch.zeros(batch, num_tokens, dtype=torch.bool, device=features.device)
    factor = similarity.new_zeros(batch, num_keep, num_tokens)  # rows of the Cholesky factor
    order, gains = [], []

    gain = quality.square()  # what the determinant is multiplied by if this token is taken
    for step in range(num_keep):
        best = gain.masked_fill(kept, -torch.inf).argmax(1)
        pivot = gain[crops, best]
        order.append(best)
        gains.append(pivot)
        kept[crops, best] = True
        row = similarity[crops, best] * quality * quality[crops, best, None]
        earlier = factor[:, :step]
        row = row - (earlier[crops, :, best][:, None] @ earlier).squeeze(1)
        # A token in the span of those before it brings nothing, and removes nothing.
        factor[:, step] = torch.where(pivot[:, None] > 0, row / pivot[:, None].sqrt(), 0)
        gain = gain - factor[:, step].square()
        gain = gain.masked_fill(gain <= nothing, 0)
    if not order:
        return gain[:, :0].long(), gain[:, :0]
    return torch.stack(order, 1), torch.stack(gains, 1)
