"""IDPruner: important tokens, by maximal marginal relevance (arXiv 2602.13315)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.ops.common.checks import check_int
from tokenprune.tokens import ReducedTokens, VisionTokens

SMALLEST_SPAN = 1e-6  # added to the span of importance, by which it is divided


@dataclass(kw_only=True)
class IDPruner(Method):
    r"""Keeps, one by one, the token that is important and unlike those kept before.

    Maximal marginal relevance (MMR) with the attention as importance.

    Attributes:
        mmr_lambda: weight of importance against likeness, in [0, 1].
        parallel_k: tokens chosen at a time, at least 1. More are faster, and may be alike.
        impl: "auto", "reference" or "triton".

    Formula:
        With $a_i$ the attention,

        $$m_i = \frac{a_i - \min_j a_j}{\max_j a_j - \min_j a_j + 10^{-6}},$$

        $S$ holds the P = `parallel_k` tokens of largest $m$ at first, and then, until $|S| = K$,
        grows by the P tokens $i \notin S$ of largest

        $$\lambda\, m_i - (1 - \lambda) \max_{s \in S} \cos(x_i, x_s),$$

        the lowest index among equals. `scores` holds these.

    Cost:
        $N D$ products for each row of cosines that a choice asks for (about $1.25\,K$ of them at
        first), and $K N$ comparisons. Memory: up to $N^2$ per crop in work.

    Fails when:
        - attention sinks: the first choice is one, and others follow if they are unlike each other.
        - one token has most of the attention: importance is then nearly zero for all others, and
          likeness alone decides.
        - the question decides: it is not read, unless importance is.

    Faithful:
        The kept tokens equal those recorded from AngelSlim's code, which is not the authors', in
        three cases
        (`tests/tokenprune/test_replay.py::test_every_recorded_case_of_a_known_form_is_equal`), at
        its count, $\operatorname{round}(N (1 - \text{ratio}))$. There a trained selector says how
        important tokens are; here it is the tower's attention, or what `VisionTokens.attention`
        holds.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str | None] = "2602.13315"
    faithful: ClassVar[str | None] = "faithful to Tencent/AngelSlim@67394ce"
    approximates: ClassVar[str | None] = "importance is the attention, not a trained selector's"
    mmr_lambda: float = 0.5
    parallel_k: int = 1
    impl: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.mmr_lambda <= 1:
            raise ValueError(f"mmr_lambda must lie in [0, 1], got {self.mmr_lambda}")
        check_int("parallel_k", self.parallel_k, low=1)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        attention = tokens.attention.detach()
        low, high = attention.amin(1, keepdim=True), attention.amax(1, keepdim=True)
        importance = (attention - low) / (high - low + SMALLEST_SPAN)
        result = ops.mmr_select(
            tokens.features,
            num_keep,
            importance,
            mmr_lambda=self.mmr_lambda,
            parallel_k=self.parallel_k,
            impl=self.impl,
        )
        return replace(result, grid_size=tokens.grid_size)
