"""PyramidDrop: stage by stage fewer tokens (arXiv 2410.17247)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenprune.method import Cut, LayerMethod


@dataclass(kw_only=True)
class PyramidDrop(LayerMethod):
    """Keeps, at the end of each stage of layers, a share of the tokens the last one attends to.

    Tokens are ranked by the query of the prompt's last token and the keys of the layer that follows
    the stage (section 3.2). Of N tokens N * lambda ** s remain after stage s, and `num_keep` after
    the last: lambda is (num_keep / N) ** (1 / stages) where `ratio` does not set it. The paper's
    three cuts with lambda 0.5 are `keep_ratio=0.125`.

    Args:
        layers: how many layers have run when tokens leave, ascending; by default a quarter, a half
            and three quarters of them, the paper's 8, 16 and 24 of 32.
        ratio: lambda, in (0, 1]. A stage never keeps fewer than `num_keep`.

    Raises:
        ValueError: `ratio` out of range, `layers` not ascending from 1 or, when applied, not below
            the number of layers.
    """

    paper: ClassVar[str | None] = "2410.17247"
    layers: Sequence[int] | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
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
        rounded = [math.floor(num_tokens * ratio**cut + 0.5) for cut in range(1, num_cuts)]
        return [max(count, num_keep) for count in rounded] + [num_keep]
