"""SparseVLM: the words that speak of the image rate its tokens (arXiv 2410.04417)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune import ops
from tokenprune.clustering import density_peaks
from tokenprune.layer_tokens import LayerTokens
from tokenprune.method import Method
from tokenprune.ops.common.checks import check_int, check_num_keep
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, others, rows, select_in_layer, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

RECYCLED = 0.3  # share of the pruned tokens


@dataclass(kw_only=True)
class SparseVLM(Method):
    r"""Keeps the tokens that relevant words of the text attend to.

    Raters are the words that image tokens attend to at least as much as to the average word; a
    token's score is the attention it receives from the raters. Tokens and text embeddings must come
    from one space. The paper's code takes raters from input embeddings, see `raters`, and scores
    from attention in layers 2, 6 and 15 of the language model: `reduce_in_layer`.

    Attributes:
        version: of the official code, in a layer: 1 recycles what it prunes; 2, SparseVLM+, frees
            attention from the rotary embedding's preference for near columns, and averages the
            heads that look at the image most.
        num_heads: how many heads these are.

    Formula:
        With the text's embeddings $t_1 \ldots t_T \in \mathbb{R}^D$ and
        $g_{\tau i} = t_\tau \cdot x_i / \sqrt D$

        $$m_\tau = \frac{1}{N} \sum_{i=1}^{N} \operatorname{softmax}_{\tau}(g_{\cdot\, i})_\tau,
        \qquad R = \left\{\tau : m_\tau \ge \frac{1}{T} \sum_{\tau'} m_{\tau'}\right\},$$

        $$s_i = \frac{1}{|R|} \sum_{\tau \in R} \operatorname{softmax}_i(g_{\tau\, \cdot})_i, \qquad
        S = \operatorname{top}_K(s).$$

        In a layer $g$ is not scaled, raters lie above the mean, and $s_i$ is the layer's attention,
        mean over heads and raters. Of the M others the $\lfloor 0.3 M \rfloor + 1$ of highest $s$
        form $\lfloor \cdot / 10 \rfloor + 1$ clusters by density peaks, whose means come out too.
        Version 2 divides attention by $R_p 1 \cdot R_q 1 / \sqrt d$, with $R_p$ the rotation of
        position $p$, before it averages.

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
        `raters` and `reduce_in_layer` give raters, scores, kept tokens and recycled rows equal to
        those recorded from the official code, in three cases of version 1 and two of version 2
        (`tests/tokenprune/test_replay.py`); densities get no noise here. What `tokenprune.apply`
        runs is a variant: raters and scores come from the embeddings, once, before the language
        model, and the rest is dropped.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    query_agnostic: ClassVar[bool] = False
    paper: ClassVar[str | None] = "2410.04417"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "text embeddings for the language model's attention; nothing is recycled"
    )

    version: int = 1
    num_heads: int = 14

    def __post_init__(self) -> None:
        check_int("version", self.version, low=1, high=2)
        check_int("num_heads", self.num_heads, low=1)

    def reduce_in_layer(self, tokens: LayerTokens, num_keep: int) -> ReducedTokens:
        """Keeps the visual tokens that raters attend to, and recycles others in `version=1`.

        Args:
            tokens: a sparse layer's `attention` from the raters, see `raters`; for `version=1` its
                output as `hidden_states`, for `version=2` `raters` and `position_embeddings`.
            num_keep: visual tokens to keep; recycled ones come out beside them, as extra rows.
        """
        check_num_keep(num_keep, tokens.num_tokens)
        scores = self.scores(tokens)
        kept = best(scores, num_keep)
        result = select_in_layer(tokens, kept, scores)
        left = others(kept, tokens.num_tokens)
        if self.version == 2 or not left.shape[1]:
            return result
        (states,) = tokens.needed("hidden_states")
        taken = best(scores.gather(1, left), int(RECYCLED * left.shape[1]) + 1)
        recycled = rows(states[:, tokens.visual], left.gather(1, taken))
        num_clusters = recycled.shape[1] // 10 + 1
        centers, cluster = density_peaks(recycled, num_clusters, num_clusters)
        return replace(
            result,
            extra=ops.cluster_mean(recycled, centers.gather(1, cluster), centers),
        )

    def scores(self, tokens: LayerTokens) -> Tensor:
        """[B, N]: the attention that visual tokens receive from the raters in a layer."""
        (attention,) = tokens.needed("attention")
        if self.version == 1:
            return attention.mean((1, 2))
        turned = turned_ones(*tokens.needed("position_embeddings")[0])
        (columns,) = tokens.needed("raters")
        weights = rows(turned, columns) @ turned[:, tokens.visual].mT * turned.shape[2] ** -0.5
        attention = attention / weights[:, None]
        heads = best(attention.sum((2, 3)), self.num_heads)
        return attention.gather(
            1, heads[..., None, None].expand(-1, -1, *attention.shape[2:])
        ).mean((1, 2))

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.text is not None  # it is in `needs`
        scores = rater_attention(tokens.features.detach(), tokens.text.detach())
        return select_tokens(tokens, best(scores, num_keep), scores)


def raters(features: Tensor, text: Tensor) -> Tensor:
    """[B, N, D] and [B, T, D] input embeddings -> [B, T] bool: the words that rate the tokens."""
    relevance = (text @ features.mT).softmax(1).mean(2)
    return relevance > relevance.mean(1, keepdim=True)


def turned_ones(cosine: Tensor, sine: Tensor) -> Tensor:
    """[B, L, d] each -> [B, L, d]: rotary embedding of a vector of ones."""
    half = torch.ones_like(sine)
    half[..., : sine.shape[2] // 2] = -1
    return cosine + half * sine


def rater_attention(features: Tensor, text: Tensor) -> Tensor:
    """[B, N, D] and [B, T, D] -> [B, N]: the mean attention from the raters."""
    dtype = wide_dtype(features.dtype)
    logits = text.to(dtype) @ features.to(dtype).mT * features.shape[2] ** -0.5  # [B, T, N]
    relevance = logits.softmax(1).mean(2)
    # All words are raters where rounding leaves none at the average.
    is_rater = relevance >= relevance.mean(1, keepdim=True) * (1 - torch.finfo(dtype).eps * 64)
    raters = is_rater.to(dtype)
    return (logits.softmax(2) * raters[:, :, None]).sum(1) / raters.sum(1, keepdim=True)
