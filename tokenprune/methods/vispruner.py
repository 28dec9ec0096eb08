"""VisPruner: important tokens, and distinct ones among the rest (arXiv 2412.01818)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.method import Method
from tokenprune.ops.common.cosine import cosine_matrix, rounding_of
from tokenprune.ops.common.precision import BLOCK_CROPS
from tokenprune.selection import best, others, rows, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class VisPruner(Method):
    r"""Keeps tokens of highest attention, and of the rest those that repeat least.

    The first part of the budget goes to attention. The rest is thinned out in rounds:
    it is split alternately in two, in raster order, and the tokens of the first half that are most
    similar to any of the second are dropped, until the budget is reached.

    Attributes:
        important_ratio: share of the budget that goes by attention, above 0 and up to 1.
        step: tokens dropped in a round, at least 1. Fewer rounds are faster.

    Formula:
        With $\gamma$ = `important_ratio`, $K_i = \lceil \gamma K \rceil$ tokens are kept by
        attention, $\operatorname{top}_{K_i}(a)$. The others, in raster order, are the list
        $\rho_0 < \rho_1 < \ldots$ of length $n$. While $n > K - K_i$, with
        $A = \{\rho_0, \rho_2, \ldots\}$ and $B = \{\rho_1, \rho_3, \ldots\}$, the

        $$\min\left(\text{step},\; n - (K - K_i),\; |B|\right) \quad\text{tokens } i \in A
        \text{ of largest}\quad \max_{j \in B} \cos(x_i, x_j)$$

        leave the list. What is left of it is kept too.

    Cost:
        $N^2 D$ products, once, and $(N - K) / \text{step}$ rounds of up to $N^2 / 4$ comparisons
        and a sort: many small steps, which make it the slowest of the measured rows. Memory: $N^2$
        per crop in work.

    Fails when:
        - attention sinks: the first part of the budget is that of `fastervlm`.
        - alike things repeat: of two, one is dropped as a repetition. Counting suffers.
        - the distinct part is outliers: as for `divprune`, noise repeats least.
        - latency matters: see the cost.

    Faithful:
        The official code keeps the rest in order of attention, and its next split depends on that
        order; here the list stays in raster order. It also rounds the attention's part of the
        budget down, not up. The method does not reproduce its choice, and no recorded output is
        claimed.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str | None] = "2412.01818"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "the rest is thinned out in raster order, not in order of attention; attention's part of "
        "the budget rounds up"
    )
    important_ratio: float = 0.5
    step: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.important_ratio <= 1:
            raise ValueError(f"important_ratio must lie in (0, 1], got {self.important_ratio}")
        if self.step < 1:
            raise ValueError(f"step must be at least 1, got {self.step}")

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        features, num_tokens = tokens.features, tokens.features.shape[1]
        num_important = math.ceil(num_keep * self.important_ratio)
        num_distinct = num_keep - num_important
        important = best(tokens.attention, num_important)
        rest = others(important, num_tokens)
        if 0 < num_distinct < rest.shape[1]:
            parts = zip(features.detach().split(BLOCK_CROPS), rest.split(BLOCK_CROPS), strict=True)
            rest = torch.cat([self._thin_out(*part, num_distinct) for part in parts])
        kept = torch.cat([important, rest[:, :num_distinct]], 1).sort(1).values
        return select_tokens(tokens, kept, tokens.attention)

    def _thin_out(self, features: Tensor, rest: Tensor, num_distinct: int) -> Tensor:
        """[B, N, D] and [B, R] tokens of a few crops -> [B, num_distinct] of them."""
        # Dozens of rounds read the same similarities: they are computed once.
        similarity = cosine_matrix(features)
        # Equal directions are equally similar, so that ties stay ties.
        similarity.masked_fill_(similarity > 1 - rounding_of(similarity.dtype), 1)
        while rest.shape[1] > num_distinct:
            candidates, references = rest[:, ::2], rest[:, 1::2]
            drop = min(self.step, rest.shape[1] - num_distinct, references.shape[1])
            columns = references[:, None].expand(-1, candidates.shape[1], -1)
            closest = rows(similarity, candidates).gather(2, columns).amax(2)
            distinct = best(-closest, candidates.shape[1] - drop)
            rest = torch.cat([candidates.gather(1, distinct), references], 1).sort(1).values
        return rest
