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
    batch, num_keep = keep_indices.shape
    crops = torch.arange(batch, device=roots.device).repeat_interleave(num_keep)
    means = packed_cluster_mean(features, roots, crops, keep_indices.flatten())
    return means.view(batch, num_keep, features.shape[2])


def packed_cluster_mean(features: Tensor, roots: Tensor, crops: Tensor, cells: Tensor) -> Tensor:
    """As `cluster_mean` for slots (crops [T], cells [T]) -> [T, D]."""
    slots = torch.full_like(roots, -1)
    slots[crops, cells] = torch.arange(len(cells), device=roots.device)
    slots = slots.gather(1, roots)

    dtype, device = wide_dtype(features.dtype), features.device
    sums = torch.zeros(len(cells), features.shape[2], dtype=dtype, device=device)
    counts = torch.zeros(len(cells), dtype=dtype, device=device)
    for start in range(0, len(features), BLOCK_CROPS):  # bounds the copy of the members
        crop, token = (slots[start : start + BLOCK_CROPS] >= 0).nonzero(as_tuple=True)
        slot = slots[crop + start, token]
        sums.index_add_(0, slot, features[crop + start, token].to(dtype))
        counts.index_add_(0, slot, torch.ones_like(slot, dtype=dtype))
    return sums.div_(counts.clamp(min=1)[:, None]).to(features.dtype)
