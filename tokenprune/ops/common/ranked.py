"""What greedy selections share: the first tokens of an order, as a result in raster order."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.checks import check_num_keep, check_quotas
from tokenprune.tokens import ReducedTokens, crops_of, cu_seqlens_of


def longest_order(num_keep: int | Tensor, features: Tensor) -> int:
    """How many tokens must be put in order for the budget, checked: the largest quota."""
    if isinstance(num_keep, Tensor):
        return max(check_quotas(num_keep, features), default=0)
    check_num_keep(num_keep, features.shape[1])
    return num_keep


def keep_first(
    features: Tensor, order: Tensor, scores: Tensor, num_keep: int | Tensor
) -> ReducedTokens:
    """The first `num_keep` tokens of each crop's order, unchanged.

    A greedy order does not depend on where it stops, so quotas of different size take prefixes.

    Args:
        features: [B, N, D].
        order: [B, K] int64, distinct tokens in the order in which they were chosen.
        scores: [B, K], the rank that chose each.
        num_keep: K, or a quota for each crop, [B] int and at most K.
    """
    batch, num_tokens, _ = features.shape
    assignment = torch.arange(num_tokens, device=features.device).repeat(batch, 1)
    if isinstance(num_keep, Tensor):
        quotas = num_keep.to(order.device)
        slot = torch.arange(order.shape[1], device=order.device) < quotas[:, None]
        keep_indices, place = order.masked_fill(~slot, num_tokens).sort(dim=1)
        keep_indices, scores = keep_indices[slot], scores.gather(1, place)[slot]
        cu_seqlens = cu_seqlens_of(quotas)
        kept = features[crops_of(cu_seqlens, len(keep_indices)), keep_indices]
    else:
        cu_seqlens = None
        keep_indices, place = order.sort(dim=1)
        scores = scores.gather(1, place)
        kept = features.gather(1, keep_indices[:, :, None].expand(-1, -1, features.shape[2]))
    return ReducedTokens(
        features=kept,
        keep_indices=keep_indices,
        valid=torch.ones_like(keep_indices, dtype=torch.bool),
        assignment=assignment,
        scores=scores.float(),
        cu_seqlens=cu_seqlens,
    )
