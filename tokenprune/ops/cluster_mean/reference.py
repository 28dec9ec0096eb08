"""Means of chosen clusters, a few crops at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.precision import BLOCK_CROPS, wide_dtype


def cluster_mean(
    features: Tensor, roots: Tensor, keep_indices: Tensor, weights: Tensor | None = None
) -> Tensor:
    batch, num_keep = keep_indices.shape
    crops = torch.arange(batch, device=roots.device).repeat_interleave(num_keep)
    means = packed_cluster_mean(features, roots, crops, keep_indices.flatten(), weights)
    return means.view(batch, num_keep, features.shape[2])


def packed_cluster_mean(
    features: Tensor, roots: Tensor, crops: Tensor, cells: Tensor, weights: Tensor | None = None
) -> Tensor:
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
        members = features[crop + start, token].to(dtype)
        if weights is None:
            counts.index_add_(0, slot, torch.ones_like(slot, dtype=dtype))
        else:
            shares = weights[crop + start, token].to(dtype)
            members = members * shares[:, None]
            counts.index_add_(0, slot, shares)
        sums.index_add_(0, slot, members)
    return sums.div_(torch.where(counts > 0, counts, 1)[:, None]).to(features.dtype)
