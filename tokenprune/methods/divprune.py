"""DivPrune: the most diverse tokens (arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class DivPrune(Method):
    r"""Keeps the tokens that lie farthest from each other.

    Greedy max-min diversity (section 3.2): the next token is the one farthest from all kept so far.

    Attributes:
        impl: "auto", "reference" or "triton".

    Formula:
        With $d_{ij} = 1 - \cos(x_i, x_j)$, zero where the two agree within rounding,

        $$s_1 = \arg\max_i\, \min_{j \ne i} d_{ij}, \qquad
        s_k = \arg\max_{i \notin S_{k-1}}\, \min_{j \in S_{k-1}} d_{ij}, \qquad
        S_k = S_{k-1} \cup \{s_k\},$$

        the lowest index among equals, until $k = K$. `scores` holds the distances.

    Cost:
        $N^2 D$ products for all pairs, which the first choice needs, and $K N$ comparisons. Memory:
        $N^2$ per crop in work (at most 16 crops at a time on a CPU), none of it $N^2 D$.

    Fails when:
        - outliers are noise: what is far from everything is taken first, so artifacts, crop borders
          and register tokens come before a faint object.
        - there are two alike things: once one is kept, the other is near, and it is dropped. In the
          picture one of the white storage tanks is gone. Counting suffers.
        - one thing needs many tokens: a smooth large one gets few, since they resemble each other.
        - the question decides: it is not read.

    Faithful:
        No departure is known. The kept tokens equal those recorded from the official code in three
        cases (`tests/tokenprune/test_golden_kept.py::test_divprune_as_published`).
    """

    paper: ClassVar[str | None] = "2503.02175"
    faithful: ClassVar[str | None] = "faithful to vbdi/divprune@799e2d9"
    impl: str = "auto"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        result = ops.max_min_select(tokens.features, num_keep, impl=self.impl)
        return replace(result, grid_size=tokens.grid_size)
