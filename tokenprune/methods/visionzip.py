"""VisionZip: dominant tokens, and the rest merged into a few (arXiv 2412.04467)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.method import Method
from tokenprune.selection import best, merge_tokens, others, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class VisionZip(Method):
    """Keeps the tokens of highest attention, and merges the rest into contextual tokens.

    The dominant tokens stay as they are. Among the others, targets are taken at equal
    steps; every other token joins the target it is most similar to, and a contextual token is the
    mean of its members. The paper compares attention keys; here the features are compared.

    Attributes:
        contextual_ratio: share of the budget that goes to contextual tokens, from 0 to below 1;
            10 of 64 in the paper.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    merges: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2412.04467"
    approximates: ClassVar[str | None] = (
        "features for keys; the class token is left out; merged after the projector"
    )
    contextual_ratio: float = 10 / 64

    def __post_init__(self) -> None:
        if not 0 <= self.contextual_ratio < 1:
            raise ValueError(f"contextual_ratio must lie in [0, 1), got {self.contextual_ratio}")

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        num_contextual = min(int(num_keep * self.contextual_ratio + 0.5), num_keep - 1)
        dominant = best(tokens.attention, num_keep - num_contextual)
        rest = others(dominant, tokens.features.shape[1])
        if not num_contextual:  # nothing to merge into: the rest is dropped
            return select_tokens(tokens, dominant, tokens.attention)
        step = rest.shape[1] // num_contextual
        targets = rest[:, : step * num_contextual : step]
        kept = torch.cat([dominant, targets], 1).sort(1).values
        return merge_tokens(tokens, kept, targets, tokens.attention)
