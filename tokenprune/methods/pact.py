"""PACT: unimportant tokens leave, and dense clusters of the rest merge (arXiv 2504.08966)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune import ops
from tokenprune.clustering import gaps
from tokenprune.layer_tokens import LayerTokens
from tokenprune.method import Cut, Method, check_below
from tokenprune.ops.common.checks import check_int, check_num_keep
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, merge_tokens, rows, select_in_layer
from tokenprune.tokens import ReducedTokens, VisionTokens

OFFICIAL = "faithful to orailix/PACT@cf9a0c9"


@dataclass(kw_only=True)
class PACT(Method):
    r"""Merges tokens into the centers of their clusters, which the important tokens form.

    The paper's code works on the input of layer 4 of the language model, counted from 0, where the
    number of clusters follows from a distance: `PACT(official=True)`, for prompts with one image.
    It reads `hidden_states`, what goes into the layer, and `keys`, `plain_keys` and
    `plain_queries`. On vision tokens features stand for all of them, and the centers are as many as
    the budget says.

    Attributes:
        official: as the official code, in the language model's layers. A budget is the most that
            there may be, and more clusters an error: they are never more than `share` of the
            tokens. With a budget of all tokens nothing is merged.
        layer: with `official`, before which layer tokens leave, counted from 0.
        share: of the tokens that may be centers, in (0, 1]: the most important ones.
        cutoff: the cosine distance between centers, in a layer.
        reach: in cutoffs, how far a token may lie from the center that it joins, in a layer.
            Tokens farther away are dropped.

    Raises:
        ValueError: `share` out of range, or `cutoff` or `reach` not above 0; when applied, `layer`
            not below the number of layers.

    Formula:
        With queries $q^h$ and keys $k^h$ before rotary embedding, $e$ the last visual token,
        $\bar q^h$ the mean query of all columns up to $e$, and $x$ hidden states,

        $$s_i = \lVert x_i \rVert \; \frac{1}{H} \sum_h \operatorname{softmax}_{j \le e}
        \left(\frac{\bar q^h \cdot k^h_j}{\sqrt d}\right)_i, \qquad
        U = \operatorname{top}_{\lfloor 0.55 N \rfloor}(s).$$

        With $d_{ij} = 1 - \cos(\kappa_i, \kappa_j)$ of rotated keys and the density
        $\rho_i = \sum_{j \in U} e^{-d_{ij}^2 / 4}$, tokens of $U$ by descending density are centers
        if farther than `cutoff` from all centers so far. Every token joins its nearest center
        within `reach` cutoffs; a slot is the mean of its members. `scores` is the logarithm of
        their number, which PACT adds to attention logits.

        On vision tokens $s_i = \lVert x_i \rVert \operatorname{softmax}_i(\bar x \cdot x_i /
        \sqrt D)$ and $\kappa = x$, U holds at least K tokens, and the centers are the K of U with
        the largest distance to the nearest denser token. All others join.

    Cost:
        $N^2 d$ products and the $N^2$ distances in memory; in a layer a loop over N tokens.

    Fails when:
        - what matters is small beside a large even ground: it is less dense, and its norm decides
          whether it may be a center at all.
        - the language model does not know the sizes: without `official` none is told.
        - features are all about equally far apart: density says nothing.

    Faithful:
        `reduce_in_layer` gives scores, centers and sizes equal to those recorded from the official
        code, and merged rows to 1e-4, in three cases (`tests/tokenprune/test_replay.py`). With
        `official=True` this is what `tokenprune.apply` runs: centers keep their positions, and
        logarithms of sizes are added to attention from the layer on, in generation and further
        turns too, by eager attention and SDPA. Logits equal those of a plain writing
        (`tests/tokenprune/test_official_layers.py`). The official code rounds the logarithms to
        half precision, this one to the model's. Without `official` a variant runs: before the
        language model, and to a budget.
    """

    merges: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2504.08966"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "before the language model, features for a layer's keys; a budget for a distance; sizes "
        "are not added to attention"
    )
    official: bool = False
    layer: int = 4
    share: float = 0.55
    cutoff: float = 0.21
    reach: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        for name in ("cutoff", "reach"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        check_int("layer", self.layer, low=1)
        if self.official:
            self.declare(
                needs=("layers",),
                reads=("hidden_states", "keys", "plain_keys", "plain_queries"),
                proportional=True,
                query_agnostic=False,
                faithful=OFFICIAL,
                approximates=None,
            )

    def cuts(self, num_layers: int) -> list[Cut]:
        if not self.official:
            return super().cuts(num_layers)
        check_below(self.layer, num_layers)
        return [Cut(before=self.layer, ranked_in=self.layer)]

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        return None if self.official else num_keep

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        features = tokens.features.detach().to(wide_dtype(tokens.features.dtype))
        logits = (features.mean(1, keepdim=True) @ features.mT)[:, 0] * features.shape[2] ** -0.5
        scores = features.norm(dim=2) * logits.softmax(1)
        number = max(int(self.share * scores.shape[1]), num_keep)
        able = best(scores, number)
        between = distances(rows(features, able))
        centers = able.gather(1, best(gaps(between, densities(between)), num_keep))
        return merge_tokens(tokens, centers, centers, scores)

    def reduce_in_layer(self, tokens: LayerTokens, num_keep: int) -> ReducedTokens:
        """Reduces the visual tokens of one prompt that go into a layer.

        Args:
            num_keep: the most there may be; the number itself depends on the data.

        Raises:
            ValueError: there are more clusters than `num_keep`.
            NotImplementedError: more than one prompt.
        """
        check_num_keep(num_keep, tokens.num_tokens)
        states, keys = tokens.needed("hidden_states", "keys")
        if len(states) != 1:
            raise NotImplementedError(f"PACT takes one prompt in a layer, got {len(states)}")
        able = self.able(tokens)
        flat = keys[:, :, tokens.visual].transpose(1, 2).flatten(2)  # [1, N, H * d]
        between = distances(flat.to(wide_dtype(flat.dtype)))[0]
        among = between[able[0]][:, able[0]]
        centers: list[int] = []
        for place in densities(among[None])[0].argsort(descending=True, stable=True).tolist():
            if (among[place, centers] > self.cutoff).all():
                centers.append(place)
        if len(centers) > num_keep:
            raise ValueError(
                f"PACT found {len(centers)} clusters, more than num_keep = {num_keep}; a larger "
                "cutoff makes fewer"
            )
        kept = able[:, centers].sort(1).values
        distance, slot = between[:, kept[0]].min(1)
        own = torch.arange(tokens.num_tokens, device=kept.device)
        joins = distance <= self.cutoff * self.reach
        assignment = torch.where(joins, kept[0][slot], own)[None].scatter(1, kept, kept)
        result = select_in_layer(tokens, kept, states.new_zeros(1, tokens.num_tokens))
        result = replace(
            result,
            features=ops.cluster_mean(states[:, tokens.visual], assignment, kept),
            assignment=assignment,
        )
        return replace(result, scores=result.counts.float().log())

    def able(self, tokens: LayerTokens) -> Tensor:
        """[B, M], the visual tokens that may be centers, ascending."""
        return best(importance(tokens), int(self.share * tokens.num_tokens))


def importance(tokens: LayerTokens) -> Tensor:
    """[B, N]: attention of the mean query up to the last visual token, times the state's norm."""
    queries, keys, states = (
        one.to(wide_dtype(one.dtype))
        for one in tokens.needed("plain_queries", "plain_keys", "hidden_states")
    )
    visual = tokens.visual
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)  # heads that share them
    query = queries[:, :, : visual.stop].mean(2, keepdim=True) * queries.shape[3] ** -0.5
    attention = (query @ keys[:, :, : visual.stop].mT)[:, :, 0].softmax(-1).mean(1)
    return attention[:, visual.start :] * states[:, visual].norm(dim=2)


def distances(compared: Tensor) -> Tensor:
    """[B, N, D] -> [B, N, N] cosine distances."""
    directions = functional.normalize(compared, dim=2)
    return 1 - directions @ directions.mT


def densities(between: Tensor) -> Tensor:
    """[B, N, N] distances -> [B, N]."""
    return (-between.square() / 4).exp().sum(2)
