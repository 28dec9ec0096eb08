"""ToMe: similar tokens merge until the budget is reached (arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.ops.common.checks import check_choice
from tokenprune.selection import compared_rows
from tokenprune.tokens import ReducedTokens, VisionTokens

KEY_LAYER = -2  # of the tower, the layer whose output LLaVA takes
AFTER_THE_TOWER = "after the tower, not inside its layers"


@dataclass(kw_only=True)
class ToMe(Method):
    """Merges the most similar tokens, in rounds of bipartite matching.

    The paper merges a little in every layer of the encoder and compares attention keys; here all
    rounds come after it; see `tokenprune.ops.bipartite_merge`.

    Attributes:
        compared: "features"; or "keys", those of the tower's second last layer, mean over heads.
            Tokens that have merged are compared by the mean of their keys.
    """

    merges: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2210.09461"
    approximates: ClassVar[str | None] = "features for keys; " + AFTER_THE_TOWER
    compared: str = "features"
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_choice("compared", self.compared, ("features", "keys"))
        if self.compared == "keys":
            self.declare(
                needs=("keys",), tower_layers={"keys": (KEY_LAYER,)}, approximates=AFTER_THE_TOWER
            )

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        compared = compared_rows(tokens, self.compared)
        result = ops.bipartite_merge(tokens.features, num_keep, compared, impl=self.impl)
        return replace(result, grid_size=tokens.grid_size)
