"""SparseVLM: the words that speak of the image rate its tokens (arXiv 2410.04417)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.method import Method
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class SparseVLM(Method):
    """Keeps the tokens that relevant words of the text attend to.

    Raters are the words that image tokens attend to at least as much as to the average word; a
    token's score is the attention it receives from the raters. The paper reads both
    from the language model's layers and recycles what it prunes; here attention is softmax of
    products over sqrt(D) between tokens and text embeddings of one space, and the rest is dropped.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    query_agnostic: ClassVar[bool] = False
    paper: ClassVar[str | None] = "2410.04417"
    approximates: ClassVar[str | None] = (
        "text embeddings for the language model's attention; nothing is recycled"
    )

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.text is not None  # it is in `needs`
        scores = rater_attention(tokens.features.detach(), tokens.text.detach())
        return select_tokens(tokens, best(scores, num_keep), scores)


def rater_attention(features: Tensor, text: Tensor) -> Tensor:
    """[B, N, D] and [B, T, D] -> [B, N]: the mean attention from the raters."""
    dtype = wide_dtype(features.dtype)
    logits = text.to(dtype) @ features.to(dtype).mT * features.shape[2] ** -0.5  # [B, T, N]
    relevance = logits.softmax(1).mean(2)
    # All words are raters where rounding leaves none at the average.
    is_rater = relevance >= relevance.mean(1, keepdim=True) * (1 - torch.finfo(dtype).eps * 64)
    raters = is_rater.to(dtype)
    return (logits.softmax(2) * raters[:, :, None]).sum(1) / raters.sum(1, keepdim=True)
