"""Background scoring in one product over the features."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.common.precision import wide_dtype, wide_matmul, without_autocast
from tokenprune.ops.common.weights import AffinityHead


@without_autocast
def background_score(features: Tensor, grid_size: tuple[int, int], head: AffinityHead) -> Tensor:
    """A depth-wise 3x3 conv followed by a 1x1 conv is one 3x3 conv of nine outputs:

        logits[y, x, k] = bias[k] + sum over taps (i, j) of f[y+i-1, x+j-1] . (pw[k] * dw[:, i, j])

    so each token meets 81 vectors once, and the products are shifted and added afterwards.
    """
    taps = tap_weights(head, features.dtype)
    return shift_and_add(wide_matmul(features, taps.T), grid_size, head.bias)


def tap_weights(head: AffinityHead, features_dtype: torch.dtype) -> Tensor:
    """[81, D]: for each of nine taps the nine outputs' weights.

    Rounded to the dtype of the features, as the tensor cores of a GPU take them; products and sums
    are wide.
    """
    width, dtype = len(head.dw), wide_dtype(features_dtype)
    depthwise = head.dw.to(dtype).reshape(width, 9).T.contiguous()
    pointwise = head.pw.to(dtype).reshape(9, width)
    return (depthwise[:, None] * pointwise).reshape(81, width).to(features_dtype)


def shift_and_add(products: Tensor, grid_size: tuple[int, int], bias: Tensor) -> Tensor:
    """[B, N, 81] products of each token with the taps -> [B, N, 9] logits."""
    batch = len(products)
    rows, cols = grid_size
    products = products.unflatten(2, (3, 3, 9)).unflatten(1, grid_size)
    logits = products.new_zeros(batch, rows + 2, cols + 2, 9)
    for i in range(3):
        for j in range(3):
            # Token (y, x) is tap (i, j) of output (y-i+1, x-j+1); the frame takes the overhang.
            logits[:, 2 - i : 2 - i + rows, 2 - j : 2 - j + cols] += products[:, :, :, i, j]
    return logits[:, 1:-1, 1:-1].reshape(batch, rows * cols, 9) + bias.to(products.dtype)
