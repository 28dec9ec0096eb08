"""Background Token Pruning and Anchored Token Selection of GeoLLaVA-8K (arXiv 2505.21375)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune import ops
from tokenprune.method import Method
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class BackgroundAnchored(Method):
    """Merges each token into its strongest neighbor, keeps the clusters the class token looks for.

    Needs a class token and the model's weights; see `tokenprune.ops.background_anchored`.
    """

    needs: ClassVar[tuple[str, ...]] = ("cls",)
    merges: ClassVar[bool] = True
    uses_grid: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2505.21375"
    dw_weight: Tensor
    pw_weight: Tensor
    pw_bias: Tensor
    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor
    max_iters: int = 12
    cycles: str = "official"
    assignment: str = "hard"
    temperature: float = 1.0
    impl: str = "auto"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.cls is not None  # it is in `needs`
        return ops.background_anchored(
            tokens.features,
            tokens.cls,
            tokens.grid_size,
            ops.AffinityHead(self.dw_weight, self.pw_weight, self.pw_bias),
            ops.Anchor(self.q_weight, self.q_bias, self.k_weight, self.k_bias),
            num_keep,
            max_iters=self.max_iters,
            cycles=self.cycles,
            assignment=self.assignment,
            temperature=self.temperature,
            impl=self.impl,
        )
