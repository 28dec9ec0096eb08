"""ToMe: similar tokens merge until the budget is reached (arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class ToMe(Method):
    """Merges the most similar tokens, in rounds of bipartite matching.

    The paper merges a little in every layer of the encoder and compares attention keys; here all
    rounds come after it and compare features; see `tokenprune.ops.bipartite_merge`.
    """

    merges: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2210.09461"
    approximates: ClassVar[str | None] = "features for keys; after the tower, not inside its layers"
    impl: str = "auto"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        result = ops.bipartite_merge(tokens.features, num_keep, impl=self.impl)
        return replace(result, grid_size=tokens.grid_size)
