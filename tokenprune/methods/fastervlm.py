"""FasterVLM: the tokens that the class token looks at (arXiv 2412.01818, version 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.method import Method
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class FasterVLM(Method):
    r"""Keeps the tokens of highest attention.

    The attention is the class token's (section 3.2); in towers without one, what each token
    receives from all stands in for it.

    Formula:
        In the tower's last used layer, with H heads of width d, the query $q^h_{\text{cls}}$ of the
        class token and the keys $k^h_j$ of all tokens, the class token's among them,

        $$a_i = \frac{1}{H} \sum_{h=1}^{H} \operatorname{softmax}_j\!\left(
        \frac{q^h_{\text{cls}} \cdot k^h_j}{\sqrt d}\right)_i, \qquad
        S = \operatorname{top}_K(a),$$

        the lowest index among equals. A tower without a class token gives
        $a_i = \frac{1}{H} \sum_h \sum_q \operatorname{softmax}_j(q^h_q \cdot k^h_j / \sqrt d)_i$.

    Cost:
        A sort of N. The host reads the attention beside SDPA or FlashAttention: one row of it,
        $N D$ products, or all rows in $O(N)$ memory, $N^2 D$ products.

    Fails when:
        - attention sinks: towers like CLIP put global information into a few background tokens
          that collect attention, and those are kept (in the picture, the blob in the middle).
        - attention gathers on one thing: its tokens repeat each other and use the budget up, while
          a second thing gets none.
        - the question asks for something that does not stand out: it is not read.
        - the class token was trained for a caption of the whole image: small things get little.

    Faithful:
        No departure is known from version 1 of the paper. The kept tokens equal those recorded from
        the official code in two cases
        (`tests/tokenprune/test_golden_kept.py::test_fastervlm_as_published`). In towers without a
        class token there is no official behavior.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str | None] = "2412.01818v1"
    faithful: ClassVar[str | None] = "faithful to Theia-4869/FasterVLM@f5d5f12"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        return select_tokens(tokens, best(tokens.attention, num_keep), tokens.attention)
