"""FastV: an image is worth half its tokens after layer 2 (arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.method import Cut, LayerMethod, check_below
from tokenprune.ops.common.checks import check_int


@dataclass(kw_only=True)
class FastV(LayerMethod):
    r"""Keeps the tokens that the prompt's last token attends to in an early layer.

    Tokens are ranked by the attention of layer K, counted from 1, and leave after it (section 4.1).

    Args:
        layer: K; the paper's default is 2, and half of the tokens (`keep_ratio=0.5`).

    Raises:
        ValueError: `layer` below 1 or, when applied, not below the number of layers.

    Formula:
        In layer $\lambda$ = `layer` of the language model, with H heads of width d, queries and
        keys after rotary embedding, and $e$ the prompt's last token,

        $$a_i = \frac{1}{H} \sum_{h=1}^{H} \operatorname{softmax}_{j \le e}\!\left(
        \frac{q^h_e \cdot k^h_j}{\sqrt d}\right)_i, \qquad
        S = \operatorname{top}_K\left(\{a_i : i \text{ a visual token}\}\right).$$

        Layers $1 \ldots \lambda$ see all tokens, later ones the text and $S$.

    Cost:
        One row of the attention of one layer, $L D$ products for a prompt of L columns, read beside
        SDPA or FlashAttention. The first $\lambda$ layers run, and cache, the whole prompt: with
        few layers less is saved than before the language model.

    Fails when:
        - text attends inaccurately: the paper of FasterVLM (arXiv 2412.01818v1) finds attention
          between text and visual tokens shifted and dispersed. In the picture whole rows are kept.
        - the last token is one of the chat template: what it attends to is not what the question
          asks for.
        - many questions about one image: each needs its own prefill, no prefix of visual tokens
          can be kept.
        - the layer has a sliding window that does not reach the image: the ranking falls back to an
          earlier layer that sees it, or raises where there is none.

    Faithful:
        Cut and ranking layer are the official ones (before layer 2 counted from 0, by the attention
        of layer 1), and positions stay original, as there. Logits equal the whole model's with the
        dropped tokens masked from the cut on (`tests/tokenprune/test_layers.py`). With the recorded
        attention given, kept tokens and positions equal those of the official code in two cases
        (`tests/tokenprune/test_replay.py`).
    """

    paper: ClassVar[str | None] = "2403.06764"
    faithful: ClassVar[str | None] = "faithful to pkunlp-icler/FastV@d165972"
    layer: int = 2

    def __post_init__(self) -> None:
        check_int("layer", self.layer, low=1)

    def cuts(self, num_layers: int) -> list[Cut]:
        check_below(self.layer, num_layers)
        return [Cut(before=self.layer, ranked_in=self.layer - 1)]

    def counts(self, num_tokens: int, num_keep: int, num_cuts: int) -> list[int]:
        return [num_keep]
