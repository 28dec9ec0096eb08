"""LLaVA-PruMerge: attended tokens, each with what resembles it (arXiv 2403.15388)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.ops.common.checks import check_choice, check_int
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import merge_tokens, rows
from tokenprune.tokens import ReducedTokens, VisionTokens

KEY_LAYER = -1  # of the tower
OFFICIAL = "faithful to 42Shawn/LLaVA-PruMerge@097c041"
FIXED_COUNT = "a budget for outliers"  # which the official code has too, as an option
SEVERAL_HEADS = "attention of several heads for one as wide"
OFFICIAL_NEIGHBORS = 32
SMALLEST_WEIGHT = 1e-6  # a token that nobody looks at still counts where it is alone


@dataclass(kw_only=True)
class PruMerge(Method):
    r"""Keeps the tokens of highest attention, and merges every other into the most similar one.

    By default a merged token is the mean of its members, weighted by their attention, and clusters
    do not overlap. The paper's code compares attention keys, adds to each kept token the
    attention-weighted sum of its 32 nearest, and adds one row for all that is not kept.
    `PruMerge(official=True)` is the paper's code: in models tokens then merge before the projector,
    and rows come in its order, by attention, the one for the rest last.

    Attributes:
        compared: "features"; or "keys", those of the tower's last layer, all heads side by side.
        neighbors: None; or how many of the nearest tokens, kept or not, are added to each kept
            token, weighted by their attention. Clusters then overlap, and sums are longer than a
            token: `assignment` names the most similar kept token among those that took it.
        keep_rest: the attention-weighted sum of all tokens that are not kept comes out too, as an
            extra row beside the budget.
        adaptive: a crop keeps as many tokens as have outlying attention (above the third quartile
            by 1.5 interquartile ranges), at least one and at most the budget. Slots then lie
            packed.
        official: as the official code: compared="keys", neighbors=32, keep_rest=True,
            adaptive=True, before the projector, by the attention of one head as wide as all.

    Formula:
        $S = \operatorname{top}_K(a)$ by attention. With $\kappa_i$ the features or keys, every
        other token joins $c(j) = \arg\max_{i \in S} \cos(\kappa_j, \kappa_i)$; a kept token has
        $c(i) = i$, and

        $$y_i = \frac{\sum_{j:\, c(j) = i} \hat a_j\, x_j}{\sum_{j:\, c(j) = i} \hat a_j}, \qquad
        \hat a_j = \max(a_j, 10^{-6}), \quad i \in S.$$

        With `neighbors=n`, $\mathcal{N}_n(i)$ being the n tokens $j \ne i$ of largest
        $\cos(\kappa_j, \kappa_i)$, $y_i = x_i + \sum_{j \in \mathcal{N}_n(i)} a_j x_j$ instead.
        `keep_rest` adds the row $\sum_{j \notin S} a_j x_j$. Under `adaptive` the budget of a crop
        is $\#\{i : a_i > Q_3 + 1.5\,(Q_3 - Q_1)\}$, clamped to $[1, K]$, with quartiles of $a$.

    Cost:
        $(N - K) K D$ products for the matches, N D for the means; with `neighbors` $K N D$ products
        and K sorts of N.

    Fails when:
        - attention sinks: kept tokens are those of `fastervlm`, and fail as they do.
        - a dropped token resembles none of the kept: it must join one all the same, and its share
          of attention pulls the mean away. Small text and thin lines blur.
        - `neighbors` is set and attention is high: the sum is longer than any token of the tower,
          which the projector has not seen.
        - `adaptive` finds no outliers: one token is left of a crop.

    Faithful:
        With `official=True`, or its options and the official attention given, kept tokens equal the
        recorded ones and merged rows agree to 1e-5 in three cases
        (`tests/tokenprune/test_replay.py`); LLaVA says what it says with rows that are written out
        from the paper (`tests/tokenprune/test_before_projector.py`). The official code has no form
        for images of several crops, hosts that have them refuse. Its default forward is
        `prumergeplus`.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    merges: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2403.15388"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "features for keys; clusters do not overlap; no extra token; a budget for outliers; "
        + SEVERAL_HEADS
    )
    compared: str = "features"
    neighbors: int | None = None
    keep_rest: bool = False
    adaptive: bool = False
    official: bool = False

    def __post_init__(self) -> None:
        if self.official:
            self.compared, self.neighbors = "keys", OFFICIAL_NEIGHBORS
            self.keep_rest = self.adaptive = True
        check_choice("compared", self.compared, ("features", "keys"))
        if self.neighbors is not None:
            check_int("neighbors", self.neighbors, low=1)
        by_keys = self.compared == "keys"
        departures = {
            "features for keys": not by_keys,
            "clusters do not overlap": self.neighbors is None,
            "no extra token": not self.keep_rest,
            FIXED_COUNT: not self.adaptive,
            SEVERAL_HEADS: not self.official,
        }
        departing = [words for words, departs in departures.items() if departs]
        attention = "single_head_attention" if self.official else "attention"
        self.declare(
            needs=(attention, "keys") if by_keys else (attention,),
            tower_layers={"keys": (KEY_LAYER,)} if by_keys else {},
            approximates="; ".join(departing) or None,
            faithful=OFFICIAL if {*departing} <= {FIXED_COUNT, SEVERAL_HEADS} else "variant",
            by_crop=self.official,
            before_projector=self.official,
            renumbers=self.official,
        )

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        return None if self.adaptive else num_keep + self.keep_rest

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        if self.official:
            tokens = replace(tokens, attention=tokens.single_head_attention)
        assert tokens.attention is not None  # it is in `needs`
        attention = tokens.attention.detach()
        if self.count(attention.shape[1], num_keep) is not None:
            return self._merged(tokens, self._kept(attention, num_keep))
        if not len(attention):
            return ReducedTokens.pack([self._merged(tokens, self._kept(attention, num_keep))])
        parts = []
        for crop, share in enumerate(self._shares(attention)):
            kept = self._kept_by_share(attention[crop : crop + 1], share, num_keep)
            parts.append(self._merged(tokens.crop(crop), kept))
        return ReducedTokens.pack(parts)

    def _kept(self, attention: Tensor, num_keep: int) -> Tensor:
        """[B, N] -> [B, num_keep], the tokens that others merge into, in the official order."""
        return attention.argsort(dim=1, descending=True, stable=True)[:, :num_keep]

    def _shares(self, attention: Tensor) -> list[float]:
        """[B, N] -> the share of each crop's tokens whose attention is outlying."""
        return [outliers / attention.shape[1] for outliers in num_outliers(attention).tolist()]

    def _kept_by_share(self, attention: Tensor, share: float, num_keep: int) -> Tensor:
        """[1, N] -> [1, M], as many as a share of the tokens, at most `num_keep`."""
        # The official code floors the product, which may lie a rounding error below a whole number.
        return PruMerge._kept(
            self, attention, min(max(int(attention.shape[1] * share), 1), num_keep)
        )

    def _merged(self, tokens: VisionTokens, chosen: Tensor) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        weights, kept = tokens.attention.detach(), chosen.sort(dim=1).values
        compared = tokens.features if self.compared == "features" else tokens.keys
        assert compared is not None  # it is in `needs`
        if self.neighbors is None:
            weights = weights.clamp(min=SMALLEST_WEIGHT)
            result = merge_tokens(tokens, kept, kept, tokens.attention, weights, compared)
        else:
            result = add_neighbors(tokens, kept, compared.detach(), self.neighbors)
        if not self.keep_rest:
            return result
        dtype = wide_dtype(tokens.features.dtype)
        left = tokens.attention.detach().scatter(1, kept, 0)[:, None]  # [B, 1, N]
        rest = left.to(dtype) @ tokens.features.to(dtype)
        return replace(
            result,
            extra=rest.to(tokens.features.dtype),
            order=order_of(kept, chosen) if self.official else None,
        )


def order_of(kept: Tensor, chosen: Tensor) -> Tensor:
    """[R] int64: of the slots [B, K], ascending, as they were chosen, and each crop's last row."""
    slots = torch.searchsorted(kept, chosen.contiguous())
    per_crop = torch.nn.functional.pad(slots, (0, 1), value=kept.shape[1])
    first = torch.arange(len(kept), device=kept.device)[:, None] * per_crop.shape[1]
    return (per_crop + first).flatten()


def num_outliers(attention: Tensor) -> Tensor:
    """[B, N] -> [B]: how many tokens lie above the third quartile by 1.5 interquartile ranges."""
    wide = attention.to(wide_dtype(attention.dtype))
    first, third = (wide.quantile(share, dim=1, keepdim=True) for share in (0.25, 0.75))
    return (wide > third + 1.5 * (third - first)).sum(1)


def add_neighbors(
    tokens: VisionTokens, kept: Tensor, compared: Tensor, neighbors: int
) -> ReducedTokens:
    """To each kept token [B, K] the sum of its nearest tokens, weighted by their attention."""
    assert tokens.attention is not None  # it is in `needs`
    features, attention = tokens.features, tokens.attention.detach()
    batch, num_tokens, _ = features.shape
    dtype = wide_dtype(features.dtype)
    directions = functional.normalize(compared.to(dtype), dim=2)
    similarity = rows(directions, kept) @ directions.mT  # [B, K, N]
    similarity.scatter_(2, kept[:, :, None], -torch.inf)  # no token is its own neighbor
    # A stable sort: ties go to the lowest index.
    ranking = similarity.argsort(dim=2, descending=True, stable=True)
    nearest = ranking[:, :, : min(neighbors, num_tokens - 1)]
    is_near = torch.zeros_like(similarity, dtype=torch.bool).scatter(2, nearest, True)
    shares = is_near * attention[:, None].to(dtype)
    sums = rows(features, kept).to(dtype) + shares @ features.to(dtype)

    strongest, slot = similarity.masked_fill(~is_near, -torch.inf).max(1)  # [B, N]
    own = torch.arange(num_tokens, device=features.device).repeat(batch, 1)
    assignment = torch.where(strongest > -torch.inf, kept.gather(1, slot), own)
    return ReducedTokens(
        features=sums.to(features.dtype),
        keep_indices=kept,
        valid=torch.ones_like(kept, dtype=torch.bool),
        assignment=assignment.scatter(1, kept, kept),
        scores=tokens.attention.gather(1, kept).float(),
        grid_size=tokens.grid_size,
    )
