"""VisionZip: dominant tokens, and the rest merged into a few (arXiv 2412.04467)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.method import Method
from tokenprune.ops.common.checks import check_choice
from tokenprune.selection import best, compared_rows, merge_tokens, others, rows, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

KEY_LAYER = -2  # of the tower, the layer whose output LLaVA takes
OFFICIAL = "faithful to dvlab-research/VisionZip@3151f6d"
AFTER_THE_PROJECTOR = "merged after the projector"


@dataclass(kw_only=True)
class VisionZip(Method):
    r"""Keeps the tokens of highest attention, and merges the rest into contextual tokens.

    The dominant tokens stay as they are. Among the others, targets are taken at equal steps; every
    other token joins the target it is most similar to. The paper's code compares attention keys,
    adds the mean of a target's members to the target, and keeps the class token. By default the
    features are compared, a contextual token is the mean of its target and its members, and the
    class token is left out. `VisionZip(official=True)` is the paper's code: in models tokens then
    merge before the projector, crop by crop, and rows come in its order: the class token, dominant
    tokens, contextual tokens; of LLaVA-NeXT's tiles the dominant tokens row by row of the mosaic,
    then all class tokens, then all contextual tokens.

    Attributes:
        contextual_ratio: share of the budget that goes to contextual tokens, from 0 to below 1;
            10 of 64 in the paper.
        compared: "features"; or "keys", those of the tower's second last layer, mean over heads.
        merging: "mean", or "sum": the target plus the mean of its members, as the paper's code has
            it. A sum is longer than a token: features that are all equal come out twice as large.
        keep_cls: the class token comes out too, as an extra row beside the budget.
        official: as the official code: compared="keys", merging="sum", keep_cls=True, before the
            projector. An image's budget is dealt to the tower's crops in equal parts.

    Formula:
        With $\gamma$ = `contextual_ratio`, $K_c = \min(\lfloor \gamma K + 1/2 \rfloor, K - 1)$ and
        $K_d = K - K_c$. The dominant tokens are $S_d = \operatorname{top}_{K_d}(a)$ by attention.
        Of the others in raster order, $\rho_0 < \rho_1 < \ldots$, targets are
        $T = \{\rho_{k \delta} : k < K_c\}$ with $\delta = \lfloor (N - K_d) / K_c \rfloor$. With
        $\kappa_i$ the features or keys, each of the rest joins

        $$c(j) = \arg\max_{i \in T} \cos(\kappa_j, \kappa_i), \qquad
        C_i = \{j : c(j) = i\}, \quad i \in T,$$

        and a contextual token is

        $$y_i = \frac{x_i + \sum_{j \in C_i} x_j}{1 + |C_i|} \;\;(\text{mean}) \qquad\text{or}\qquad
        y_i = x_i + \frac{1}{|C_i|} \sum_{j \in C_i} x_j \;\;(\text{sum}).$$

    Cost:
        A sort of N, $(N - K) K_c D$ products for the matches, and $N D$ for the means.

    Fails when:
        - attention sinks: dominant tokens are those of `fastervlm`, and fail as they do.
        - what attention misses is small: targets lie at equal steps, blind to content, and a thing
          that is none of them is averaged into one.
        - contextual tokens are few and the rest is varied: each is a mean of much that is unlike
          it.
        - `merging="sum"`: contextual tokens are about twice as long as others.

    Faithful:
        With `official=True` the tokens equal those recorded from the official code to 1e-5 in three
        cases (`tests/tokenprune/test_replay.py`), and LLaVA and LLaVA-NeXT say what they say with
        rows that are written out from the paper (`tests/tokenprune/test_before_projector.py`).
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    merges: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2412.04467"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "features for keys; means for sums; the class token is left out; " + AFTER_THE_PROJECTOR
    )
    contextual_ratio: float = 10 / 64
    compared: str = "features"
    merging: str = "mean"
    keep_cls: bool = False
    official: bool = False

    def __post_init__(self) -> None:
        if self.official:
            self.compared, self.merging, self.keep_cls = "keys", "sum", True
        if not 0 <= self.contextual_ratio < 1:
            raise ValueError(f"contextual_ratio must lie in [0, 1), got {self.contextual_ratio}")
        check_choice("compared", self.compared, ("features", "keys"))
        check_choice("merging", self.merging, ("mean", "sum"))
        by_keys = self.compared == "keys"
        wanted = {"attention": True, "cls": self.keep_cls, "keys": by_keys}
        departures = {
            "features for keys": not by_keys,
            "means for sums": self.merging == "mean",
            "the class token is left out": not self.keep_cls,
            AFTER_THE_PROJECTOR: not self.official,
        }
        departing = [words for words, departs in departures.items() if departs]
        self.declare(
            needs=tuple(name for name, needed in wanted.items() if needed),
            tower_layers={"keys": (KEY_LAYER,)} if by_keys else {},
            approximates="; ".join(departing) or None,
            faithful=OFFICIAL if {*departing} <= {AFTER_THE_PROJECTOR} else "variant",
            by_crop=self.official,
            before_projector=self.official,
            renumbers=self.official,
        )

    def count(self, num_tokens: int, num_keep: int) -> int:
        return num_keep + self.keep_cls

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        result = self._merged(tokens, num_keep)
        if not self.keep_cls:
            return result
        assert tokens.cls is not None  # it is in `needs`
        num_contextual = self._num_contextual(num_keep)
        return replace(
            result,
            extra=tokens.cls[:, None],
            order=official_order(tokens, result, num_contextual) if self.official else None,
        )

    def _num_contextual(self, num_keep: int) -> int:
        return min(int(num_keep * self.contextual_ratio + 0.5), num_keep - 1)

    def _merged(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        attention = tokens.attention
        num_contextual = self._num_contextual(num_keep)
        dominant = best(attention, num_keep - num_contextual)
        rest = others(dominant, tokens.features.shape[1])
        if not num_contextual:  # nothing to merge into: the rest is dropped
            return select_tokens(tokens, dominant, attention)
        step = rest.shape[1] // num_contextual
        targets = rest[:, : step * num_contextual : step]
        kept = torch.cat([dominant, targets], 1).sort(1).values
        compared = compared_rows(tokens, self.compared)
        if self.merging == "mean":
            return merge_tokens(tokens, kept, targets, attention, compared=compared)
        # A target counts nothing in its members' mean, and is added to it afterwards.
        is_target = torch.zeros_like(attention).scatter(1, targets, 1)
        result = merge_tokens(tokens, kept, targets, attention, 1 - is_target, compared)
        added = rows(tokens.features, kept) * is_target.gather(1, kept)[..., None]
        return replace(result, features=result.features + added.to(result.features.dtype))


def official_order(tokens: VisionTokens, result: ReducedTokens, num_contextual: int) -> Tensor:
    """[R] int64: class token, dominant, contextual; tiles together, as `VisionZip` says.

    Args:
        result: [B, K], whose one extra row is the class token.
    """
    assert tokens.attention is not None  # it is in `needs`
    kept = result.keep_indices
    num_crops, num_keep = kept.shape
    # Contextual tokens are those kept that were not among the best.
    dominant = best(tokens.attention, num_keep - num_contextual)
    is_dominant = torch.zeros_like(tokens.attention).scatter(1, dominant, 1).gather(1, kept) > 0
    number = torch.arange(num_crops * (num_keep + 1), device=kept.device).view(num_crops, -1)
    slots, cls = number[:, :num_keep], number[:, num_keep]
    if tokens.crop_grid is None or num_crops == 1:
        parts = zip(cls.split(1), slots, is_dominant, strict=True)
        return torch.cat([torch.cat([one, row[of], row[~of]]) for one, row, of in parts])
    tiles, of = slots[1:], is_dominant[1:]
    row, col = (kept[1:] // tokens.grid_size[1], kept[1:] % tokens.grid_size[1])
    tile = torch.arange(num_crops - 1, device=kept.device)[:, None]
    row = row + tile // tokens.crop_grid[1] * tokens.grid_size[0]
    col = col + tile % tokens.crop_grid[1] * tokens.grid_size[1]
    place = row * tokens.crop_grid[1] * tokens.grid_size[1] + col
    dominant_tiles = tiles[of][place[of].argsort()]
    first = torch.cat([cls[:1], slots[0][is_dominant[0]], slots[0][~is_dominant[0]]])
    return torch.cat([first, dominant_tiles, cls[1:], tiles[~of]])
