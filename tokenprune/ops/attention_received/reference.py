"""Column sums of the softmax, a few rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.precision import wide_dtype, without_autocast

BLOCK_ROWS = 128


@without_autocast
def attention_received(q: Tensor, k: Tensor, scale: float) -> Tensor:
    dtype = wide_dtype(q.dtype)
    keys = k.to(dtype).mT
    received = torch.zeros(k.shape[:3], dtype=dtype, device=k.device)
    for rows in q.split(BLOCK_ROWS, dim=2):  # never N x N
        received = received + ((rows.to(dtype) * scale) @ keys).softmax(-1).sum(2)
    return received
