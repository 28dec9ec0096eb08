"""Control: keep every n-th token. Blind, and often not far behind."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.method import Method
from tokenprune.selection import select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class Uniform(Method):
    """Control: keeps tokens at equal steps of the raster order.

    Cuts the N tokens into `num_keep` runs, as equal as they come, and keeps the middle of each:
    token floor((i + 1/2) N / K) for i < K.
    """

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        batch, num_tokens, _ = tokens.features.shape
        steps = torch.arange(num_keep, device=tokens.features.device)
        keep_indices = (2 * steps + 1) * num_tokens // (2 * num_keep)
        scores = torch.zeros(batch, num_tokens, device=tokens.features.device)
        return select_tokens(tokens, keep_indices.repeat(batch, 1), scores)
