"""LLaVA-PruMerge: attended tokens, each with what resembles it (arXiv 2403.15388)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.method import Method
from tokenprune.selection import best, merge_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

SMALLEST_WEIGHT = 1e-6  # a token that nobody looks at still counts where it is alone


@dataclass(kw_only=True)
class PruMerge(Method):
    """Keeps the tokens of highest attention, and merges every other into the most similar one.

    A merged token is the mean of its members, weighted by their attention. The paper
    finds the number of tokens from outliers of the attention and compares attention keys; here the
    budget is given, and the features are compared.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    merges: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2403.15388"
    approximates: ClassVar[str | None] = (
        "features for keys; clusters do not overlap; no extra token; a budget for outliers"
    )

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        kept = best(tokens.attention, num_keep)
        weights = tokens.attention.detach().clamp(min=SMALLEST_WEIGHT)
        return merge_tokens(tokens, kept, kept, tokens.attention, weights)
