"""FasterVLM: the tokens that the class token looks at (arXiv 2412.01818, version 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.method import Method
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class FasterVLM(Method):
    """Keeps the tokens of highest attention.

    The attention is the class token's (section 3.2); in towers without one, what each token
    receives from all stands in for it.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str | None] = "2412.01818v1"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        return select_tokens(tokens, best(tokens.attention, num_keep), tokens.attention)
