"""FasterVLM: the tokens that the class token looks at (arXiv 2412.01818)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.method import Method
from tokenprune.selection import select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class FasterVLM(Method):
    """Keeps the `num_keep` tokens of highest attention; the rest is dropped (section 3.2).

    In towers without a class token the attention received from all tokens stands in for it.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        # A stable sort: ties go to the lowest index.
        ranking = tokens.attention.detach().argsort(dim=1, descending=True, stable=True)
        return select_tokens(tokens, ranking[:, :num_keep].sort(dim=1).values, tokens.attention)
