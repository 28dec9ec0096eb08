"""Control: keep tokens at random. A method that does not beat it has learned nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.method import Method
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class Random(Method):
    """Control: keeps tokens drawn at random, without replacement.

    Every crop of a size gets the same draw, so that none depends on the batch it comes in.

    Attributes:
        seed: the draw depends on it and on N alone, the same on every device.
    """

    seed: int = 0

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        batch, num_tokens, _ = tokens.features.shape
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(num_tokens, generator=generator).to(tokens.features.device)
        scores = scores.repeat(batch, 1)
        return select_tokens(tokens, best(scores, num_keep), scores)
