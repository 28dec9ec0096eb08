"""DivPrune: the most diverse tokens (arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class DivPrune(Method):
    """Keeps the tokens that lie farthest from each other.

    Greedy max-min diversity (section 3.2): the distance is 1 - cosine similarity, and the next
    token is the one farthest from all kept so far; see `tokenprune.ops.max_min_select`.
    """

    paper: ClassVar[str | None] = "2503.02175"
    impl: str = "auto"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        result = ops.max_min_select(tokens.features, num_keep, impl=self.impl)
        return replace(result, grid_size=tokens.grid_size)
