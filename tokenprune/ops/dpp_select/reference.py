"""Greedy MAP of a determinantal point process by incremental Cholesky, a few crops at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.cosine import WeightedRows, rounding_of
from tokenprune.ops.common.precision import BLOCK_CROPS, wide_dtype, without_autocast


@without_autocast
@torch.no_grad()
def dpp_order(features: Tensor, quality: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """[B, N, D] and [B, N] -> [B, K] tokens as chosen, and [B, K] the factor each brought."""
    batch, num_tokens, _ = features.shape
    quality = quality.to(wide_dtype(features.dtype))
    order = torch.empty(batch, num_keep, dtype=torch.int64, device=features.device)
    gains = quality.new_empty(batch, num_keep)
    # One memory for all crops: what is new to the process is slow to touch.
    size = min(batch, BLOCK_CROPS)
    scratch = quality.new_empty(size, num_tokens, num_tokens)
    factor = quality.new_empty(size, num_keep, num_tokens)
    for start in range(0, batch, BLOCK_CROPS):
        some = slice(start, start + BLOCK_CROPS)
        # Most tokens that will be kept are among those that rank highest alone.
        rows = WeightedRows(features[some], quality[some], scratch, num_keep + num_keep // 4)
        _fill_order(rows, quality[some].square(), factor, order[some], gains[some])
    return order, gains


def _fill_order(
    kernel: WeightedRows, gain: Tensor, factor: Tensor, order: Tensor, gains: Tensor
) -> None:
    """Greedy MAP of a few crops.

    Args:
        kernel: its rows.
        gain: [B, N], what the determinant is multiplied by if this token is taken; changes.
        factor: [B or more, K, N] memory for the rows of the Cholesky factor.
        order, gains: [B, K], written to.
    """
    factor = factor[: len(gain)]
    crops = torch.arange(len(gain), device=gain.device)
    nothing = rounding_of(gain.dtype) * gain
    for step in range(order.shape[1]):
        pivot, best = gain.max(1, keepdim=True)  # the first of equals
        order[:, step : step + 1], gains[:, step : step + 1] = best, pivot
        row, earlier = kernel.at(best, gain), factor[:, :step]
        at_best = earlier[crops, :, best[:, 0]]
        row = row[:, None].baddbmm_(at_best[:, None], earlier, alpha=-1)[:, 0]
        # A token in the span of those before it brings nothing, and removes nothing.
        row.mul_(pivot.rsqrt().nan_to_num_(0, posinf=0))
        factor[:, step] = row
        gain.addcmul_(row, row, value=-1)
        gain.masked_fill_(gain <= nothing, 0).scatter_(1, order[:, : step + 1], -torch.inf)
