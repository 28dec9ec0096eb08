"""Score, merge, select: the three references in a row."""

from __future__ import annotations

from torch import Tensor

from tokenprune.ops.anchored_select.reference import anchored_select
from tokenprune.ops.background_merge.reference import background_merge
from tokenprune.ops.background_score.reference import background_score
from tokenprune.tokens import ReducedTokens


def background_anchored(
    features: Tensor,
    cls: Tensor,
    grid_size: tuple[int, int],
    dw_weight: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    num_keep: int,
    max_iters: int,
    cycles: str,
) -> ReducedTokens:
    logits = background_score(features, grid_size, dw_weight, pw_weight, pw_bias)
    roots = background_merge(logits, grid_size, max_iters, cycles)
    return anchored_select(
        features, cls, roots, q_weight, q_bias, k_weight, k_bias, num_keep, grid_size
    )
