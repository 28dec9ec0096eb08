"""Means of chosen clusters, and of no others."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.precision import BLOCK_CROPS, wide_dtype


def cluster_mean(features: Tensor, roots: Tensor, keep_indices: Tensor) -> Tensor:
    """Mean of the tokens whose root is kept; the other tokens are not read.

    Args:
        features: [B, N, D]. Differentiable: a mean's gradient goes back to its members.
        roots: [B, N] int64, each token's root.
        keep_indices: [B, K] int64, the roots whose means are wanted, each once.

    Returns:
        [B, K, D] in the dtype of `features`, summed in float32 and rounded once; zero where no
        token has that root.
    """
    batch, _, width = features.shape
    num_keep = keep_indices.shape[1]
    numbers = torch.arange(num_keep, device=roots.device).expand(batch, -1)
    slots = torch.full_like(roots, -1).scatter(1, keep_indices, numbers).gather(1, roots)

    sums = torch.zeros(
        batch * num_keep, width, dtype=wide_dtype(features.dtype), device=features.device
    )
    counts = torch.zeros(batch * num_keep, dtype=sums.dtype, device=features.device)
    for start in range(0, batch, BLOCK_CROPS):  # bounds the copy of the members
        crop, token = (slots[start : start + BLOCK_CROPS] >= 0).nonzero(as_tuple=True)
        members = features[crop + start, token].to(sums.dtype)
        slot = (crop + start) * num_keep + slots[crop + start, token]
        sums.index_add_(0, slot, members)
        counts.index_add_(0, slot, torch.ones_like(slot, dtype=sums.dtype))
    means = sums / counts.clamp(min=1)[:, None]
    return means.to(features.dtype).view(batch, num_keep, width)
