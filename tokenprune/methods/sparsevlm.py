"""SparseVLM: the words that speak of the image rate its tokens (arXiv 2410.04417)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune import ops
from tokenprune.clustering import density_peaks
from tokenprune.layer_tokens import LayerTokens
from tokenprune.method import Cut, Method
from tokenprune.ops.common.checks import check_int, check_num_keep
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, others, rows, select_in_layer, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

OFFICIAL = "faithful to Gumpest/SparseVLMs@26a5f48"
RECYCLED = 0.3  # share of the pruned tokens
# Tokens kept in the three layers, for on average 64, 96, 128 and 192 in 32 layers. By version.
SCHEDULES = {
    1: ((66, 30, 17), (238, 48, 26), (303, 110, 36), (300, 200, 110)),
    2: ((66, 34, 20), (246, 54, 28), (238, 108, 60), (300, 200, 118)),
}
READS = {
    1: ("attention", "raters", "hidden_states"),
    2: ("attention", "raters", "position_embeddings"),
}


@dataclass(kw_only=True)
class SparseVLM(Method):
    r"""Keeps the tokens that relevant words of the text attend to.

    Raters are the words that image tokens attend to at least as much as to the average word; a
    token's score is the attention it receives from the raters. Tokens and text embeddings must come
    from one space. The paper's code takes raters from input embeddings, see `raters`, and scores
    from attention in layers 2, 6 and 15 of the language model: `SparseVLM(official=True)`, for
    prompts with one image and text after it.

    Attributes:
        official: as the official code, in the language model's layers. The budget is what is kept
            in the last of `layers`; what is kept before it follows the official schedules, in
            between in proportion. For the paper's averages of 64, 96, 128 and 192 tokens the budget
            is 17, 26, 36 and 110, or 20, 28, 60 and 118 in version 2.
        layers: the three that rank, counted from 0; tokens leave after each. Shallow models need
            others.
        version: of the official code, in a layer: 1 recycles what it prunes; 2, SparseVLM+, frees
            attention from the rotary embedding's preference for near columns, and averages the
            heads that look at the image most.
        num_heads: how many heads these are.

    Raises:
        ValueError: options out of range; when applied, `layers` that the language model does not
            have, or a prompt without raters.

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
        (`tests/tokenprune/test_replay.py`); densities get no noise here. With `official=True` this
        is what `tokenprune.apply` runs. In version 1 recycled rows stand after the kept tokens and
        positions are numbered anew, as there; in version 2 positions stay. Logits of prompts and
        generation equal those of a plain writing
        (`tests/tokenprune/test_official_layers.py`). Budgets that are none of the official ones
        follow no official schedule. Without `official` a variant runs: raters and scores come from
        the embeddings, once, before the language model, and the rest is dropped.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    query_agnostic: ClassVar[bool] = False
    paper: ClassVar[str | None] = "2410.04417"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "text embeddings for the language model's attention; nothing is recycled"
    )

    official: bool = False
    layers: Sequence[int] = (2, 6, 15)
    version: int = 1
    num_heads: int = 14

    def __post_init__(self) -> None:
        check_int("version", self.version, low=1, high=2)
        check_int("num_heads", self.num_heads, low=1)
        layers = list(self.layers)
        if len(layers) != 3 or layers != sorted({*layers}) or layers[0] < 0:
            raise ValueError(f"layers must be three that ascend from at least 0, got {layers}")
        if self.official:
            self.declare(
                needs=("layers",),
                reads=READS[self.version],
                renumbers=self.version == 1,
                merges=self.version == 1,
                faithful=OFFICIAL,
                approximates=None,
            )

    def cuts(self, num_layers: int) -> list[Cut]:
        if not self.official:
            return super().cuts(num_layers)
        if self.layers[-1] + 1 >= num_layers:
            raise ValueError(
                f"layers must lie below {num_layers - 1}, the last of the language model, "
                f"got {list(self.layers)}"
            )
        return [Cut(before=layer + 1, ranked_in=layer) for layer in self.layers]

    def counts(self, num_tokens: int, num_keep: int, num_cuts: int) -> list[int]:
        if num_keep == num_tokens:
            return [num_keep] * num_cuts
        schedules = [(0, 0, 0), *SCHEDULES[self.version], (num_tokens,) * 3]
        upper = next(at for at, counts in enumerate(schedules) if num_keep <= counts[-1])
        low, high = schedules[upper - 1 : upper + 1]
        share = (num_keep - low[-1]) / (high[-1] - low[-1])
        found, left = [], num_tokens
        for fewer, more in zip(low, high, strict=True):
            # At least one token leaves, as there, where the budget allows it.
            count = min(round(fewer + share * (more - fewer)), left - 1)
            found.append(max(count, num_keep))
            left = found[-1] + self._num_recycled(left - found[-1])
        return found

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        if not self.official or num_keep == num_tokens:
            return num_keep
        left = num_tokens
        for count in self.counts(num_tokens, num_keep, 3):
            left = count + self._num_recycled(left - count)
        return left

    def _num_recycled(self, num_pruned: int) -> int:
        """Rows that come out for pruned tokens."""
        if self.version == 2 or not num_pruned:
            return 0
        return num_taken(num_pruned) // 10 + 1

    def rating_columns(self, tokens: LayerTokens) -> list[Tensor]:
        (states,) = tokens.needed("hidden_states")
        stop = tokens.visual.stop
        chosen = raters(states[:, tokens.visual], states[:, stop:])
        found = [row.nonzero()[:, 0] + stop for row in chosen]
        if not all(map(len, found)):
            raise ValueError(
                "SparseVLM ranks by words after the image that speak of it more than others do, "
                f"got {tokens.length - stop} columns and none of them"
            )
        return found

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
        taken = best(scores.gather(1, left), num_taken(left.shape[1]))
        recycled = rows(states[:, tokens.visual], left.gather(1, taken))
        num_clusters = self._num_recycled(left.shape[1])
        compared = recycled.detach().to(wide_dtype(recycled.dtype))
        centers, cluster = density_peaks(compared, num_clusters, num_clusters)
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


def num_taken(num_pruned: int) -> int:
    """Tokens that are recycled of so many."""
    return int(RECYCLED * num_pruned) + 1


def raters(features: Tensor, text: Tensor) -> Tensor:
    """[B, N, D] and [B, T, D] input embeddings -> [B, T] bool: the words that rate the tokens."""
    dtype = wide_dtype(features.dtype)
    relevance = (text.to(dtype) @ features.to(dtype).mT).softmax(1).mean(2)
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
