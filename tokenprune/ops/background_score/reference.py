"""Background scoring in one product over the features."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.precision import wide_dtype, wide_matmul, without_autocast


@without_autocast
def background_score(
    features: Tensor,
    grid_size: tuple[int, int],
    dw_weight: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
) -> Tensor:
    """A depth-wise 3x3 conv followed by a 1x1 conv is one 3x3 conv of nine outputs:

        logits[y, x, k] = bias[k] + sum over taps (i, j) of f[y+i-1, x+j-1] . (pw[k] * dw[:, i, j])

    so each token meets 81 columns once, and the taps are shifted and added afterwards.
    """
    batch, _, width = features.shape
    rows, cols = grid_size
    dtype = wide_dtype(features.dtype)

    depthwise = dw_weight.to(dtype).reshape(width, 3, 3)
    pointwise = pw_weight.to(dtype).reshape(9, width)
    columns = torch.einsum("dij,kd->dijk", depthwise, pointwise).reshape(width, 81)
    taps = wide_matmul(features, columns).reshape(batch, rows, cols, 3, 3, 9)

    logits = taps.new_zeros(batch, rows + 2, cols + 2, 9)
    for i in range(3):
        for j in range(3):
            # Token (y, x) is tap (i, j) of output (y-i+1, x-j+1); the frame takes the overhang.
            logits[:, 2 - i : 2 - i + rows, 2 - j : 2 - j + cols] += taps[:, :, :, i, j]
    return logits[:, 1:-1, 1:-1].reshape(batch, rows * cols, 9) + pw_bias.to(dtype)
