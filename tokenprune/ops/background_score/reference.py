"""Background scoring: as two convolutions, or in one product over the features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.ops.common.precision import wide_dtype, wide_matmul, without_autocast
from tokenprune.ops.common.weights import AffinityHead


@without_autocast
def background_score(features: Tensor, grid_size: tuple[int, int], head: AffinityHead) -> Tensor:
    """A depth-wise 3x3 conv followed by a 1x1 conv is one 3x3 conv of nine outputs:

        logits[y, x, k] = bias[k] + sum over taps (i, j) of f[y+i-1, x+j-1] . (pw[k] * dw[:, i, j])

    so each token meets 81 vectors once, and the products are shifted and added afterwards.
    """
    if convolves(features):
        blocks = features.split(crops_in_cache(features))
        return torch.cat([convolved(block, grid_size, head) for block in blocks])
    taps = tap_weights(head, features.dtype)
    return shift_and_add(wide_matmul(features, taps.T), grid_size, head.bias)


def convolves(features: Tensor) -> bool:
    """Whether the two convolutions, 18 products of a channel instead of 81, are what is fast here.

    float32 on a CPU: narrow features meet taps rounded as a GPU's are, a GPU's convolutions may
    round to TF32, and no library has them for float64.
    """
    cpu = features.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return cpu and features.dtype == torch.float32


def crops_in_cache(features: Tensor) -> int:
    """Crops whose convolved copy, 4 MiB, is still in the cache when the next product reads it."""
    _, num_tokens, width = features.shape
    return max(1, 2**20 // (num_tokens * width))


def convolved(features: Tensor, grid_size: tuple[int, int], head: AffinityHead) -> Tensor:
    """[B, N, D] -> [B, N, 9] logits by the depth-wise and the point-wise convolution."""
    grid = features.unflatten(1, grid_size).permute(0, 3, 1, 2)  # channels last, as the tokens lie
    weight = head.dw.to(features.dtype, memory_format=torch.channels_last)
    mixed = functional.conv2d(grid, weight, padding=1, groups=len(weight))
    tokens = mixed.permute(0, 2, 3, 1).flatten(1, 2)
    pointwise = head.pw.to(features.dtype).flatten(1).expand(len(tokens), -1, -1)
    return (torch.bmm(pointwise, tokens.mT) + head.bias[:, None]).mT


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
