"""FastV: an image is worth half its tokens after layer 2 (arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.method import Cut, LayerMethod
from tokenprune.ops.common.checks import check_int


@dataclass(kw_only=True)
class FastV(LayerMethod):
    """Keeps the tokens that the prompt's last token attends to in an early layer.

    Tokens are ranked by the attention of layer K, counted from 1, and leave after it (section 4.1).

    Args:
        layer: K; the paper's default is 2, and half of the tokens (`keep_ratio=0.5`).

    Raises:
        ValueError: `layer` below 1 or, when applied, not below the number of layers.
    """

    paper: ClassVar[str | None] = "2403.06764"
    layer: int = 2

    def __post_init__(self) -> None:
        check_int("layer", self.layer, low=1)

    def cuts(self, num_layers: int) -> list[Cut]:
        if self.layer >= num_layers:
            raise ValueError(
                f"layer must lie below the {num_layers} layers of the language model, "
                f"got {self.layer}"
            )
        return [Cut(before=self.layer, ranked_in=self.layer - 1)]

    def counts(self, num_tokens: int, num_keep: int, num_cuts: int) -> list[int]:
        return [num_keep]
