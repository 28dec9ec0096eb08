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
    r"""Keeps the tokens that relevant words of the text attend to.

    Raters are the words that image tokens attend to at least as much as to the average word; a
    token's score is the attention it receives from the raters. Tokens and text embeddings must come
    from one space.

    Formula:
        With the text's embeddings $t_1 \ldots t_T \in \mathbb{R}^D$ and
        $g_{\tau i} = t_\tau \cdot x_i / \sqrt D$

        $$m_\tau = \frac{1}{N} \sum_{i=1}^{N} \operatorname{softmax}_{\tau}(g_{\cdot\, i})_\tau,
        \qquad R = \left\{\tau : m_\tau \ge \frac{1}{T} \sum_{\tau'} m_{\tau'}\right\},$$

        $$s_i = \frac{1}{|R|} \sum_{\tau \in R} \operatorname{softmax}_i(g_{\tau\, \cdot})_i, \qquad
        S = \operatorname{top}_K(s).$$

    Cost:
        $T N D$ products and a sort of N. Memory: $T N$.

    Fails when:
        - text and tokens do not share a space: products of word embeddings and projected tokens say
          little, as for `cdpruner`.
        - norms differ: products are no cosines, so a token of large norm may win under every word.
        - words of no content (articles, the chat template's) become raters.
        - several things are asked for: nothing keeps tokens from repeating, so the one that the
          raters name loudest takes the budget. On the made-up scenes below more budget hardly
          brings further objects.

    Faithful:
        The official code picks raters from unscaled products, reads scores from the language
        model's attention in three layers, and recycles what it prunes into cluster means. Here both
        come from the embeddings, once, before the language model, and the rest is dropped. No
        recorded output is claimed.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    query_agnostic: ClassVar[bool] = False
    paper: ClassVar[str | None] = "2410.04417"
    faithful: ClassVar[str | None] = "variant"
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
