"""PyramidDrop: stage by stage fewer tokens (arXiv 2410.17247)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenprune.method import Cut, LayerMethod

OFFICIAL = "faithful to Cooperx521/PyramidDrop@6444f30"


@dataclass(kw_only=True)
class PyramidDrop(LayerMethod):
    r"""Keeps, at the end of each stage of layers, a share of the tokens the last one attends to.

    Tokens are ranked by the query of the prompt's last token and the keys of the layer that follows
    the stage (section 3.2). The paper's three cuts with ratio 0.5 are `keep_ratio=0.125`.

    Args:
        layers: how many layers have run when tokens leave, ascending; by default a quarter, a half
            and three quarters of them, the paper's 8, 16 and 24 of 32.
        ratio: lambda, in (0, 1]. A stage never keeps fewer than `num_keep`.
        official: as the official code, a stage's count is rounded down, and positions are numbered
            anew after each cut.

    Raises:
        ValueError: `ratio` out of range, `layers` not ascending from 1 or, when applied, not below
            the number of layers.

    Formula:
        With G cuts and $\lambda = (K / N)^{1/G}$, or `ratio`, of N tokens there remain after cut
        $g = 1, \ldots, G - 1$

        $$N_g = \max\left(K,\; \lfloor N \lambda^g + \tfrac{1}{2} \rfloor\right), \qquad N_G = K:$$

        those with the highest attention of the prompt's last token $e$ in the layer after the cut,

        $$a_i = \frac{1}{H} \sum_{h=1}^{H} \operatorname{softmax}_{j \le e}\!\left(
        \frac{q^h_e \cdot k^h_j}{\sqrt d}\right)_i,$$

        among the tokens that the cut before has left.

    Cost:
        A row of attention for each cut. What is saved grows from stage to stage: with the default
        layers the first quarter runs, and caches, all N tokens.

    Fails when:
        - the first cut drops what a later layer would have looked for: nothing comes back.
        - attention of one token ranks: as for `fastv`, the last token may be the chat template's.
        - the language model is shallow: three cuts in four layers leave one layer to each stage.
        - many questions about one image: each needs its own prefill.

    Faithful:
        Cuts and counts follow the official schedule
        (`tests/tokenprune/test_layers.py::test_the_published_schedule`). Scores, kept tokens and,
        with `official=True`, positions equal those recorded from the official code in three cases
        (`tests/tokenprune/test_replay.py`). By default a stage's count rounds to the nearest, and
        positions stay: logits then equal the whole model's with the dropped tokens masked from each
        cut on (`tests/tokenprune/test_layers.py`).
    """

    paper: ClassVar[str | None] = "2410.17247"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "the count of a stage rounds to the nearest, not down; positions stay the original ones "
        "unless they are asked to be compact"
    )
    layers: Sequence[int] | None = None
    ratio: float | None = None
    official: bool = False

    def __post_init__(self) -> None:
        if self.official:
            self.declare(renumbers=True, approximates=None, faithful=OFFICIAL)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {self.ratio}")
        if self.layers is not None and (
            not self.layers or list(self.layers) != sorted({*self.layers}) or self.layers[0] < 1
        ):
            raise ValueError(f"layers must ascend from at least 1, got {list(self.layers)}")

    def cuts(self, num_layers: int) -> list[Cut]:
        layers = self.layers
        if layers is None:
            layers = sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)} - {0})
        if not layers or layers[-1] >= num_layers:
            raise ValueError(
                f"layers must lie below the {num_layers} layers of the language model, "
                f"got {list(layers)}"
            )
        return [Cut(before=layer, ranked_in=layer) for layer in layers]

    def counts(self, num_tokens: int, num_keep: int, num_cuts: int) -> list[int]:
        ratio = self.ratio or (num_keep / num_tokens) ** (1 / num_cuts)
        half = 0 if self.official else 0.5
        rounded = [math.floor(num_tokens * ratio**cut + half) for cut in range(1, num_cuts)]
        return [max(count, num_keep) for count in rounded] + [num_keep]
