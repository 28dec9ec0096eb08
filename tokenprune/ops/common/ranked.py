"""Greedy selections share this: the first tokens of an order, as a result in raster order."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.quotas import Quotas
from tokenprune.tokens import ReducedTokens


def keep_first(features: Tensor, order: Tensor, scores: Tensor, quotas: Quotas) -> ReducedTokens:
    """The first tokens of each crop's order, as many as its quota, unchanged.

    A greedy order does not depend on where it stops, so quotas of different size take prefixes.

    Args:
        features: [B, N, D].
        order: [B, K] int64, distinct tokens in the order in which they were chosen; K is the
            largest quota.
        scores: [B, K], the rank that chose each.
        quotas: of the crops.
    """
    batch, num_tokens, _ = features.shape
    if quotas.cu_seqlens is None:
        keep_indices, place = order.sort(dim=1)
        scores = scores.gather(1, place)
        kept = features.gather(1, keep_indices[:, :, None].expand(-1, -1, features.shape[2]))
    else:
        rank = torch.arange(quotas.largest, device=order.device).expand_as(order)
        has_slot = quotas.has_slot(rank)
        keep_indices, place = order.masked_fill(~has_slot, num_tokens).sort(dim=1)
        keep_indices, scores = keep_indices[has_slot], scores.gather(1, place)[has_slot]
        kept = features[quotas.crops(batch, order.device), keep_indices]
    return ReducedTokens(
        features=kept,
        keep_indices=keep_indices,
        valid=torch.ones_like(keep_indices, dtype=torch.bool),
        assignment=torch.arange(num_tokens, device=features.device).repeat(batch, 1),
        scores=scores.float(),
        cu_seqlens=quotas.cu_seqlens,
    )
