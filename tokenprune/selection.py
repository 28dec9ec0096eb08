"""What pruning methods share: keep some tokens as they are, drop the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.tokens import ReducedTokens, VisionTokens


def select_tokens(tokens: VisionTokens, keep_indices: Tensor, scores: Tensor) -> ReducedTokens:
    """Keeps the tokens at `keep_indices` unchanged.

    Args:
        tokens: B crops of N tokens.
        keep_indices: [B, K] int64, ascending.
        scores: [B, N], the rank by which they were chosen.
    """
    features = tokens.features
    batch, num_tokens, width = features.shape
    return ReducedTokens(
        features=features.gather(1, keep_indices[:, :, None].expand(-1, -1, width)),
        keep_indices=keep_indices,
        valid=torch.ones_like(keep_indices, dtype=torch.bool),
        assignment=torch.arange(num_tokens, device=features.device).repeat(batch, 1),
        scores=scores.gather(1, keep_indices).float(),
        grid_size=tokens.grid_size,
    )
