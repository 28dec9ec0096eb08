"""Column sums of the softmax, a head and a few rows at a time."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tokenprune.ops.common.precision import wide_dtype, without_autocast

BLOCK_ROWS = 1024


@without_autocast
def attention_received(q: Tensor, k: Tensor, scale: float) -> Tensor:
    dtype = wide_dtype(q.dtype)
    received = []
    for image, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        keys = k[image, head].to(dtype).contiguous().mT
        blocks = q[image, head].to(dtype).split(BLOCK_ROWS)  # never all N rows of many heads
        sums = [((rows * scale) @ keys).softmax(-1).sum(0) for rows in blocks]
        received.append(torch.stack(sums).sum(0))
    if not received:
        return k.new_zeros(k.shape[:3], dtype=dtype)
    return torch.stack(received).view(k.shape[:3])
