"""SCOPE: tokens that matter and stand for what is not covered yet (arXiv 2510.24214)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.ops.common.checks import check_choice
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import AS_THEY_COME, FEATURE_LAYER, compared_rows, rows
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class SCOPE(Method):
    r"""Keeps, one by one, the token that adds most to what is covered, weighed by its attention.

    A token is covered as far as it is similar to one that is kept.

    Attributes:
        alpha: exponent of the attention, not negative; 0 is coverage alone.
        compared: what similarity is measured on: "hidden_states", the output of the tower's last
            layer but one, which LLaVA's projector takes; or "features", the tokens as they come.
        impl: "auto", "reference" or "triton".

    Formula:
        With attention $a_j$, $h$ what is compared, and how far token $i$ is covered,
        $c_i = \max(0, \max_{s \in S} \cos(h_i, h_s))$, which is 0 at first, K times

        $$S \leftarrow S \cup \left\{\arg\max_{j \notin S}\; a_j^{\alpha}
        \sum_{i=1}^{N} \max\left(0,\; \cos(h_i, h_j) - c_i\right)\right\},$$

        the lowest index among equals. `scores` holds the gains.

    Cost:
        $N^2 D$ products, once, and at most $K N^2$ comparisons: see `ops.coverage_select`. Memory:
        $N^2$ per crop in work.

    Fails when:
        - attention sinks: their attention multiplies whatever they cover, as for `fastervlm`.
        - the image is mostly one ground: its tokens cover the most, so the first choices go there.
        - a thing is small and unlike all else: it covers itself alone.
        - the question decides: it is not read.

    Faithful:
        The kept tokens equal those recorded from the official code in three cases
        (`tests/tokenprune/test_replay.py::test_every_recorded_case_of_a_known_form_is_equal`), with
        its combination "multi". It sums attention over heads, here it is their mean: the order of
        the gains is the same. `compared="features"` departs where the projector has changed the
        tokens, as under `apply`.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention", "hidden_states")
    tower_layers: ClassVar[Mapping[str, tuple[int, ...]]] = {"hidden_states": (FEATURE_LAYER,)}
    paper: ClassVar[str | None] = "2510.24214"
    faithful: ClassVar[str | None] = "faithful to kinredon/SCOPE@6bf7306"
    alpha: float = 1.0
    compared: str = "hidden_states"
    impl: str = "auto"

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha must not be negative, got {self.alpha}")
        check_choice("compared", self.compared, ("hidden_states", "features"))
        if self.compared == "features":
            self.declare(**AS_THEY_COME)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        compared = compared_rows(tokens, self.compared).detach()
        weights = tokens.attention.detach().to(wide_dtype(compared.dtype)) ** self.alpha
        chosen = ops.coverage_select(compared, num_keep, weights, impl=self.impl)
        return replace(
            chosen,
            features=rows(tokens.features, chosen.keep_indices),
            grid_size=tokens.grid_size,
        )
