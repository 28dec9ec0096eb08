"""Control: keep tokens at random. A method that does not beat it has learned nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.method import Method
from tokenprune.selection import select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class Random(Method):
    """Keeps `num_keep` tokens of each crop, drawn without replacement; the rest is dropped.

    Attributes:
        seed: the draw depends on it and on the shape alone, the same on every device.
    """

    seed: int = 0

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        batch, num_tokens, _ = tokens.features.shape
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(batch, num_tokens, generator=generator).to(tokens.features.device)
        keep_indices = scores.topk(num_keep, dim=1).indices.sort(dim=1).values
        return select_tokens(tokens, keep_indices, scores)
