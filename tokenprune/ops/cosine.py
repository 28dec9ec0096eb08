"""Cosine similarity, as the references compute it: in blocks, and the same for equal directions."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.precision import wide_dtype

BLOCK_ROWS = 128
SMALLEST_NORM = 1e-12  # a token of zeros is similar to nothing, itself included


def rounding_of(dtype: torch.dtype) -> float:
    """What rounding may leave between two equal directions in a dtype; less than it is nothing."""
    return 64 * torch.finfo(dtype).eps


def cosine_distance(similarity: Tensor) -> Tensor:
    """1 - similarity; exactly zero between equal directions, so that ties stay ties."""
    distance = 1 - similarity
    return distance.masked_fill(distance < rounding_of(distance.dtype), 0)


def inverse_norms(features: Tensor) -> Tensor:
    """[B, N, D] -> [B, N] in the wide dtype."""
    wide = features.to(wide_dtype(features.dtype))
    return 1 / torch.linalg.vector_norm(wide, dim=-1).clamp(min=SMALLEST_NORM)


def cosine_matrix(features: Tensor) -> Tensor:
    """[B, N, D] -> [B, N, N] in the wide dtype, for a few crops at a time.

    Each pair is multiplied once and mirrored; the norms are on the diagonal.
    """
    wide = features.to(wide_dtype(features.dtype))
    batch, num_tokens, _ = wide.shape
    products = wide.new_empty(batch, num_tokens, num_tokens)
    for start in range(0, num_tokens, BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        products[:, start:stop, start:] = wide[:, start:stop] @ wide[:, start:].mT
        products[:, stop:, start:stop] = products[:, start:stop, stop:].mT
    scale = 1 / products.diagonal(dim1=1, dim2=2).sqrt().clamp(min=SMALLEST_NORM)
    return products.mul_(scale[:, :, None]).mul_(scale[:, None, :])
