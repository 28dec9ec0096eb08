"""Means of chosen clusters, and of no others."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.checks import check_features, check_indices, check_shape, check_tensor
from tokenprune.ops.precision import BLOCK_CROPS, wide_dtype


def cluster_mean(
    features: Tensor, roots: Tensor, keep_indices: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean of the tokens whose root is kept; the other tokens are not read.

    Args:
        features: [B, N, D]. Differentiable: a mean's gradient goes back to its members.
        roots: [B, N] int64, each token's root.
        keep_indices: [B, K] int64, the roots whose means are wanted, each once.
        weights: [B, N] not negative, what each token counts; 1 by default.

    Returns:
        [B, K, D] in the dtype of `features`, summed in float32 and rounded once; zero where no
        token has that root.

    Raises:
        ValueError: shapes, devices, or indices out of range (checked on the CPU).
        TypeError: dtypes.
    """
    check_features(features)
    batch, num_tokens, width = features.shape
    check_indices("roots", roots, (batch, num_tokens), "[B, N]", high=num_tokens)
    check_tensor("keep_indices", keep_indices)
    if keep_indices.ndim != 2:
        raise ValueError(f"keep_indices must be [B, K], got shape {list(keep_indices.shape)}")
    num_keep = keep_indices.shape[1]
    check_indices("keep_indices", keep_indices, (batch, num_keep), "[B, K]", high=num_tokens)
    if weights is not None:
        check_shape("weights", weights, (batch, num_tokens), "[B, N]", like=features)
    crops = torch.arange(batch, device=roots.device).repeat_interleave(num_keep)
    means = packed_cluster_mean(features, roots, crops, keep_indices.flatten(), weights)
    return means.view(batch, num_keep, width)


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
