"""VisPruner: important tokens, and distinct ones among the rest (arXiv 2412.01818)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.ops.common.checks import check_choice
from tokenprune.ops.common.cosine import rounding_of
from tokenprune.ops.common.precision import BLOCK_CROPS, wide_dtype
from tokenprune.selection import AS_THEY_COME, FEATURE_LAYER, compared_rows, rows, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class VisPruner(Method):
    r"""Keeps tokens of highest attention, and of the rest those that repeat least.

    The first part of the budget goes to attention. The rest, a list in order of attention, is
    thinned out in rounds: it is split alternately in two, and the tokens of the first half that are
    most similar to any of the second are dropped, until the budget is reached.

    Attributes:
        important_ratio: share of the budget that goes by attention, above 0 and up to 1.
        step: tokens dropped in a round, at least 1. Fewer rounds are faster.
        compared: what similarity is measured on: "hidden_states", the output of the tower's last
            layer but one, which LLaVA's projector takes; or "features", the tokens as they come.

    Formula:
        With $\gamma$ = `important_ratio`, $K_i = \lfloor \gamma K \rfloor$ tokens are kept by
        attention, $\operatorname{top}_{K_i}(a)$. The others, by descending attention, are the list
        $\rho_0, \rho_1, \ldots$ of length $n$. While $n > K - K_i$, with
        $A = (\rho_0, \rho_2, \ldots)$, $B = (\rho_1, \rho_3, \ldots)$ and $h$ what is compared,

        $$\sigma_i = \max_{j \in B} \cos(h_i, h_j) \quad (i \in A), \qquad
        r = \min\left(\text{step},\; n - (K - K_i),\; |A|\right),$$

        the $r$ tokens of largest $\sigma$ leave. The new list is the rest of A by descending
        $\sigma$, then B in its order. What is left in the end is kept too.

    Cost:
        $N^2 D$ products, once, and $(N - K) / \text{step}$ rounds of up to $N^2 / 4$ comparisons
        and a sort: many small steps. Memory: $N^2$ per crop in work.

    Fails when:
        - attention sinks: the first part of the budget is that of `fastervlm`.
        - alike things repeat: of two, one is dropped as a repetition. Counting suffers.
        - the distinct part is outliers: as for `divprune`, noise repeats least.
        - latency matters: see the cost.

    Faithful:
        The kept tokens equal those recorded from the official code in four cases
        (`tests/tokenprune/test_replay.py::test_every_recorded_case_of_a_known_form_is_equal`), in
        float32. With hundreds of tokens some similarities are as near to each other as rounding,
        and what float64 keeps then is something else after dozens of rounds. The
        official code fails on a list of odd length; here A is then one longer than B.
        `compared="features"` departs where the projector has changed the tokens, as under `apply`.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention", "hidden_states")
    tower_layers: ClassVar[Mapping[str, tuple[int, ...]]] = {"hidden_states": (FEATURE_LAYER,)}
    paper: ClassVar[str | None] = "2412.01818"
    faithful: ClassVar[str | None] = "faithful to Theia-4869/VisPruner@aefa01a"
    important_ratio: float = 0.5
    step: int = 8
    compared: str = "hidden_states"

    def __post_init__(self) -> None:
        if not 0 < self.important_ratio <= 1:
            raise ValueError(f"important_ratio must lie in (0, 1], got {self.important_ratio}")
        if self.step < 1:
            raise ValueError(f"step must be at least 1, got {self.step}")
        check_choice("compared", self.compared, ("hidden_states", "features"))
        if self.compared == "features":
            self.declare(**AS_THEY_COME)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        compared = compared_rows(tokens, self.compared).detach()
        num_important = int(num_keep * self.important_ratio)
        num_distinct = num_keep - num_important
        ranking = tokens.attention.detach().argsort(dim=1, descending=True, stable=True)
        rest = ranking[:, num_important:]
        if 0 < num_distinct < rest.shape[1]:
            parts = zip(compared.split(BLOCK_CROPS), rest.split(BLOCK_CROPS), strict=True)
            rest = torch.cat([self._thin_out(*part, num_distinct) for part in parts])
        kept = torch.cat([ranking[:, :num_important], rest[:, :num_distinct]], 1).sort(1).values
        return select_tokens(tokens, kept, tokens.attention)

    def _thin_out(self, compared: Tensor, rest: Tensor, num_distinct: int) -> Tensor:
        """[B, N, D] and the list [B, R] of a few crops -> [B, num_distinct] of it."""
        # Dozens of rounds read the same similarities: they are computed once. Of unit vectors, as
        # in the official code: among thousands of scores some are as near as rounding.
        units = functional.normalize(compared.to(wide_dtype(compared.dtype)), dim=2)
        similarity = units @ units.mT
        # Equal directions are equally similar, so that ties stay ties.
        similarity.masked_fill_(similarity > 1 - rounding_of(similarity.dtype), 1)
        while rest.shape[1] > num_distinct:
            candidates, references = rest[:, ::2], rest[:, 1::2]
            drop = min(self.step, rest.shape[1] - num_distinct, candidates.shape[1])
            columns = references[:, None].expand(-1, candidates.shape[1], -1)
            closest = rows(similarity, candidates).gather(2, columns).amax(2)
            ranking = closest.argsort(dim=1, descending=True, stable=True)
            rest = torch.cat([candidates.gather(1, ranking[:, drop:]), references], 1)
        return rest
