"""DART: tokens that do not duplicate a few pivots (arXiv 2502.11494)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, rows, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class DART(Method):
    r"""Keeps a few pivots, and for each of them the tokens least similar to it.

    Pivots are the tokens of largest L1 norm. The budget left is dealt out to them in equal parts,
    and one after the other, in raster order, each takes the tokens of lowest cosine similarity
    among those left.

    Attributes:
        num_pivots: at least 1; never more than the budget.

    Formula:
        With M = `num_pivots`, or K where that is less, the pivots $p_0 < \ldots < p_{M-1}$ are the
        M tokens of largest $\lVert x_i \rVert_1$, and $S = \{p_0, \ldots, p_{M-1}\}$. For
        $m = 0, \ldots, M - 1$ pivot $p_m$ adds to $S$ the

        $$k_m = \left\lfloor \tfrac{(m+1)(K-M)}{M} \right\rfloor
        - \left\lfloor \tfrac{m (K-M)}{M} \right\rfloor$$

        tokens $i \notin S$ of lowest $\cos(x_{p_m}, x_i)$.

    Cost:
        $N D$ for the norms, $M N D$ products, and M sorts of N. Memory: $M N$.

    Fails when:
        - what matters resembles a pivot: each pivot keeps what is *least* like it, so a thing that
          is neither of large norm nor unlike a pivot is not chosen.
        - several pivots lie in one region: their lists are nearly the same, and the budget goes to
          one end of the feature space.
        - norms mark artifacts: towers with register-like tokens of large norm make them pivots.
        - things are small and the ground varies: on the made-up scenes below fewer of their
          tokens are kept than by `random`.

    Faithful:
        The official code works before a layer of the language model, ranks pivots by the L1 norm of
        that layer's rotated keys, takes half of them from the text after the image, and compares
        the layer's normed output. Here vision tokens alone are looked at, before the language
        model. No recorded output is claimed.
    """

    paper: ClassVar[str | None] = "2502.11494"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "pivots by features before the language model, not by a layer's keys and text"
    )
    num_pivots: int = 8

    def __post_init__(self) -> None:
        if self.num_pivots < 1:
            raise ValueError(f"num_pivots must be at least 1, got {self.num_pivots}")

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        features = tokens.features.detach().to(wide_dtype(tokens.features.dtype))
        num_pivots = min(self.num_pivots, num_keep)
        norms = features.norm(p=1, dim=2)
        pivots = best(norms, num_pivots)
        directions = functional.normalize(features, dim=2)
        similarity = rows(directions, pivots) @ directions.mT  # [B, P, N]
        kept = torch.zeros_like(norms, dtype=torch.bool).scatter_(1, pivots, True)
        left = num_keep - num_pivots
        for pivot in range(num_pivots):
            share = left * (pivot + 1) // num_pivots - left * pivot // num_pivots
            taken = best((-similarity[:, pivot]).masked_fill(kept, -torch.inf), share)
            kept.scatter_(1, taken, True)
        return select_tokens(tokens, best(kept.int(), num_keep), norms)
