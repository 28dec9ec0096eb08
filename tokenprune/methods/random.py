"""Control: keep tokens at random. A method that does not beat it has learned nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.method import Method
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class Random(Method):
    """Keeps `num_keep` tokens of each crop, drawn without replacement; the rest is dropped.

    Attributes:
        seed: the draw depends on it and on the shape alone, the same on every device.
    """

    seed: int = 0

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        batch, num_tokens, width = tokens.features.shape
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(batch, num_tokens, generator=generator).to(tokens.features.device)
        keep_indices = scores.topk(num_keep, dim=1).indices.sort(dim=1).values
        return ReducedTokens(
            features=tokens.features.gather(1, keep_indices[:, :, None].expand(-1, -1, width)),
            keep_indices=keep_indices,
            valid=torch.ones_like(keep_indices, dtype=torch.bool),
            assignment=torch.arange(num_tokens, device=scores.device).repeat(batch, 1),
            scores=scores.gather(1, keep_indices),
            grid_size=tokens.grid_size,
        )
