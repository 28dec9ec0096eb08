"""Control: keep every n-th token. Blind, and often not far behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.method import Method
from tokenprune.selection import select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class Uniform(Method):
    r"""Control: keeps tokens at equal steps of the raster order.

    Cuts the N tokens into `num_keep` runs, as equal as they come, and keeps the middle of each.

    Formula:
        $$S = \left\{ \left\lfloor \tfrac{(2k + 1)\, N}{2 K} \right\rfloor : k = 0, \ldots, K - 1
        \right\}.$$

    Cost:
        K indices; the features are only gathered.

    Fails when:
        - anything small matters: what lies between two steps is gone.
        - the step divides the width of the grid: the same columns are kept in every row, as in the
          picture, and the rest of the image is never seen.

    Faithful:
        A control without a paper.
    """

    faithful: ClassVar[str | None] = "control"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        batch, num_tokens, _ = tokens.features.shape
        steps = torch.arange(num_keep, device=tokens.features.device)
        keep_indices = (2 * steps + 1) * num_tokens // (2 * num_keep)
        scores = torch.zeros(batch, num_tokens, device=tokens.features.device)
        return select_tokens(tokens, keep_indices.repeat(batch, 1), scores)
