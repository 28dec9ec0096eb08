"""HiPrune: attention of a middle layer, where objects are, and of a deep one (arXiv 2508.00553)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune.method import Method
from tokenprune.selection import best, select_marked, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class HiPrune(Method):
    r"""Keeps anchors of a middle tower layer with their neighbors, the rest by a deep layer.

    A layer's score of a token is the attention that it receives there from all tokens. The defaults
    are those of LLaVA's towers; `HiPrune(object_layer=15, deep_layer=-1)` is the form for
    Qwen2.5-VL.

    Attributes:
        alpha: share of the budget for anchors and their four neighbors, in [0, 1].
        object_layer: of the tower, whose attention finds the anchors; counted as Python's lists
            count, 8 is the ninth.
        deep_layer: whose attention finds the rest.
        official: as the official code. An image's budget is dealt to the tower's crops in equal
            parts; and tokens that are kept already may be chosen again, as the sums over queries
            let the code for Qwen2.5-VL do, so that fewer than K remain, a number that depends on
            the image.

    Formula:
        With $o_i$ and $d_i$ the attention that token $i$ receives in the two layers, mean over
        heads and sum over queries, W the columns of the grid and
        $m = \operatorname{round}(\alpha K / 5)$,

        $$A = \operatorname{top}_m(o), \qquad
        B = \left\{\min(\max(i + \delta, 0), N - 1) : i \in A,\;
        \delta \in \{0, -1, 1, -W, W\}\right\}, \qquad
        S = B \cup \operatorname{top}_{K - |B|}(d_i : i \notin B),$$

        the lowest index among equals. Neighbors to the left and right go around the ends of rows.
        With `official` the last part is $\operatorname{top}_{K - |B|}(d_i - [i \in B])$ of all
        tokens.

    Cost:
        Two sorts of N. The host reads the attention beside SDPA: $N^2 D$ products in each layer,
        in $O(N)$ memory.

    Fails when:
        - attention sinks: both parts of the budget go to what all tokens look at.
        - the tower has another depth: which layer sees objects was found for the paper's towers.
        - an object is large: its anchors are neighbors, and share the tokens around them.
        - the question decides: it is not read.

    Faithful:
        The kept tokens equal those recorded from the official code in three cases of the form for
        LLaVA, and in two of the form for Qwen2.5-VL with `official=True`
        (`tests/tokenprune/test_replay.py::test_every_recorded_case_of_a_known_form_is_equal`).
        Without it the budget is exact: where anchors and neighbors are more than K, those of
        highest $o$ stay. In models it is the whole model with the other tokens masked
        (`tests/tokenprune/test_official.py`).
    """

    needs: ClassVar[tuple[str, ...]] = ("received",)
    tower_layers: ClassVar[Mapping[str, tuple[int, ...]]] = {"received": (8, -2)}
    uses_grid: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2508.00553"
    faithful: ClassVar[str | None] = "faithful to Danielement321/HiPrune@6e83a12"
    alpha: float = 0.1
    object_layer: int = 8
    deep_layer: int = -2
    official: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")
        if self.object_layer == self.deep_layer:
            raise ValueError(f"object_layer and deep_layer must differ, got {self.deep_layer}")
        self.declare(
            tower_layers={"received": (self.object_layer, self.deep_layer)}, by_crop=self.official
        )

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        return None if self.official else num_keep

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.received is not None  # it is in `needs`
        objects, deep = (
            tokens.received[layer].detach() for layer in (self.object_layer, self.deep_layer)
        )
        num_tokens, cols = objects.shape[1], tokens.grid_size[1]
        by_object = objects.argsort(dim=1, descending=True, stable=True)
        anchors = by_object[:, : round(num_keep * self.alpha / 5)]
        steps = torch.tensor([0, -1, 1, -cols, cols], device=anchors.device)
        around = (anchors[:, :, None] + steps).clamp(0, num_tokens - 1).flatten(1)
        first = torch.zeros_like(objects, dtype=torch.bool).scatter(1, around, True)
        if self.official:
            rank = (deep - first.to(deep.dtype)).argsort(dim=1, descending=True, stable=True)
            left = num_keep - first.sum(1, keepdim=True)
            return select_marked(tokens, first | (rank.argsort(dim=1) < left), deep)
        rank = deep.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        place = torch.where(first, by_object.argsort(dim=1), num_tokens + rank)
        return select_tokens(tokens, best(-place, num_keep), -place)
