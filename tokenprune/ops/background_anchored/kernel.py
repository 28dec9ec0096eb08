"""The kernels in turn: features are read once for scores, those that are kept again for means."""

from __future__ import annotations

from torch import Tensor

from tokenprune.ops.anchored_select.kernel import launch_select
from tokenprune.ops.anchored_select.selection import Selection
from tokenprune.ops.background_merge.kernel import doublings_of
from tokenprune.ops.background_score.kernel import launch_parents
from tokenprune.ops.common.quotas import Quotas


def launch(
    features: Tensor,
    anchors: Tensor,
    offsets: Tensor,
    taps: Tensor,
    bias: Tensor,
    grid_size: tuple[int, int],
    quotas: Quotas,
    max_iters: int,
    cycles: str,
) -> Selection:
    """[B, N, D], [B, D] anchors, [B] offsets, [81, D] taps, [9] bias -> the kept clusters."""
    parents, token_scores = launch_parents(features, grid_size, taps, bias, anchors, offsets)
    doublings = doublings_of(features.shape[1], max_iters, cycles)
    return launch_select(features, parents, token_scores, quotas, doublings, cycles == "merge")
