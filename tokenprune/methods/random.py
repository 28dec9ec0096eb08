"""Control: keep tokens at random. A method that does not beat it has learned nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.method import Method
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class Random(Method):
    r"""Control: keeps tokens drawn at random, without replacement.

    Every crop of a size gets the same draw, so that none depends on the batch it comes in.

    Attributes:
        seed: the draw depends on it and on N alone, the same on every device.

    Formula:
        $u_1, \ldots, u_N \sim \mathcal{U}[0, 1)$ from a generator seeded with `seed`;
        $S = \operatorname{top}_K(u)$, the same places in every crop.

    Cost:
        A sort of N per crop; the features are only gathered.

    Fails when:
        - anything small matters: a thing of one token survives with probability $K / N$.
        - one draw is reported: it is a single sample. Take several seeds before a method is said to
          be better or worse.

    Faithful:
        A control without a paper.
    """

    faithful: ClassVar[str | None] = "control"
    seed: int = 0

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        batch, num_tokens, _ = tokens.features.shape
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(num_tokens, generator=generator).to(tokens.features.device)
        scores = scores.repeat(batch, 1)
        return select_tokens(tokens, best(scores, num_keep), scores)
