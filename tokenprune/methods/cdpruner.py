"""CDPruner: tokens that matter to the question and do not repeat (arXiv 2506.10967)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.tokens import ReducedTokens, VisionTokens

SMALLEST_RELEVANCE = 1e-6  # of the least relevant token, which may still be needed


@dataclass(kw_only=True)
class CDPruner(Method):
    """Keeps relevant tokens that differ: a determinantal point process given the text.

    Relevance is the mean cosine similarity to the text, brought to [0, 1] in each crop;
    it weighs the kernel of similarities, whose determinant is maximized greedily; see
    `tokenprune.ops.dpp_select`. Text and tokens must come from one space, such as CLIP's.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    query_agnostic: ClassVar[bool] = False
    paper: ClassVar[str | None] = "2506.10967"
    approximates: ClassVar[str | None] = (
        "relevance and kernel from features and text as given, not in CLIP's joint space"
    )
    impl: str = "auto"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.text is not None  # it is in `needs`
        relevance = text_relevance(tokens.features.detach(), tokens.text.detach())
        result = ops.dpp_select(tokens.features, num_keep, relevance, impl=self.impl)
        return replace(result, grid_size=tokens.grid_size)


def text_relevance(features: Tensor, text: Tensor) -> Tensor:
    """[B, N, D] and [B, T, D] -> [B, N] in (0, 1]."""
    dtype = wide_dtype(features.dtype)
    # The mean of cosines is one product with the mean of the text's directions.
    words = functional.normalize(text.to(dtype), dim=2).mean(1)
    cosine = (functional.normalize(features.to(dtype), dim=2) @ words[:, :, None]).squeeze(2)
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    span = (high - low).clamp(min=SMALLEST_RELEVANCE)
    return ((cosine - low) / span + SMALLEST_RELEVANCE).clamp(max=1)
